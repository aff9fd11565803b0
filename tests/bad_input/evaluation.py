"""Evaluating while training."""

from .case import Case

FIT = "tdpo fit --plugin tdpo2"
EVALUATED = f"{FIT} --eval-cache tdpo-cache"


CASES = (
    Case(
        "a figure that the evaluations do not give",
        f"{EVALUATED} --best rewards/accuracy --output run",
        "the evaluations give no eval_rewards/accuracy; did you mean 'eval_rewards/accuracies'",
        keeps=True,
    ),
    Case(
        "the best of no evaluations", f"{FIT} --best eval_loss", "nothing is evaluated; give --eval-cache DIR"
    ),
    Case(
        "a figure of which it is not known when it is better",
        f"{EVALUATED} --best eval_entropy",
        "--best eval_entropy: .*--best-mode max or min",
    ),
    Case(
        "a figure of one evaluation cache or another",
        f"{FIT} --eval-cache dev=tdpo-cache --eval-cache test=tdpo-cache --best loss",
        "of which evaluation cache.*eval_dev_loss or eval_test_loss",
    ),
    Case(
        "checkpoints that are not evaluated",
        f"{EVALUATED} --best eval_loss --eval-steps 4 --save-steps 6",
        "--save-steps 6 and --eval-steps 4 must be the same",
    ),
    Case(
        "early stopping by no figure",
        f"{EVALUATED} --early-stopping 2",
        "--early-stopping needs.*--best METRIC",
    ),
    Case(
        "two evaluation caches of one name",
        f"{FIT} --eval-cache tdpo-cache --eval-cache ./tdpo-cache",
        "another one is named 'tdpo-cache'.*--eval-cache NAME=./tdpo-cache",
    ),
    Case(
        "the best by transformers' own field",
        f"{EVALUATED} --set training.load_best_model_at_end=true",
        "training.load_best_model_at_end: say --best METRIC",
    ),
    Case(
        "a schedule that follows what is not evaluated",
        f"{FIT} --schedule reduce_lr_on_plateau",
        "follows a figure of the evaluations: give --eval-cache",
    ),
    Case("samples of no prompts", f"{FIT} --samples 4", "the prompts are those of an evaluation cache"),
    Case(
        "an unknown tracker",
        f"{FIT} --report-to tensorbord",
        "no tracker 'tensorbord'; did you mean 'tensorboard'",
    ),
)
