"""Options and tdpo.yaml."""

from .case import Case

FIT = "tdpo fit --plugin tdpo2"
BUILD = "tdpo cache build --ref model --dataset pairs.jsonl --out new"


def setting(title, value, says):
    return Case(title, f"{FIT} --set {value}", says)


def config(title, text, says):
    return Case(f"{title}: {text}", FIT, says, lambda world: world.write("tdpo.yaml", text))


CASES = (
    Case("a misspelt command", "tdpo fitt", "no command 'fitt'; did you mean 'fit'"),
    Case("a misspelt command of tdpo cache", "tdpo cache biuld", "biuld"),
    Case("a misspelt option", f"{FIT} --learning-rte 1", "--learning-rate"),
    Case("an option without its value", f"{FIT} --cache", "--cache.* requires an argument"),
    Case("a word too many", "tdpo cache info a b", "unexpected extra argument"),
    Case("no reference", "tdpo cache build --dataset pairs.jsonl", "--ref must be given"),
    Case("no data", "tdpo cache build --ref model", "--dataset must be given"),
    Case("no objective", "tdpo fit", "--plugin must be given"),
    setting("a misspelt hyperparameter", "alhpa=1", "alhpa is not an option; did you mean 'alpha'"),
    setting("a hyperparameter below its range", "alpha=-1", "alpha=-1.0 is out of range: it must be >= 0"),
    setting("a hyperparameter at the end of its range", "beta=0", "must be > 0"),
    setting("not a number", "beta=nan", "must be > 0"),
    setting("a word in place of a number", "beta=strong", "expected a number, not 'strong'"),
    setting("--set without a value", "beta", "expected NAME=VALUE"),
    setting("a word that is no choice", "reward_form=cod", "did you mean 'code'"),
    setting("a misspelt training option", "training.weight_decya=1", "did you mean 'weight_decay'"),
    setting("a training option of the wrong kind", "training.weight_decay=much", "expected a number"),
    Case("a learning rate of zero", f"{FIT} --learning-rate 0", "learning_rate=0.0 is out of range"),
    Case("epochs that are no number", f"{FIT} --epochs many", "expected a number"),
    Case("half a pair", f"{FIT} --batch-size 1.5", "expected a whole number"),
    Case("a misspelt estimator", f"{FIT} --kl-estimator fited", "did you mean 'fitted'"),
    Case("a schedule that transformers lacks", f"{FIT} --schedule linaer", "did you mean 'linear'"),
    Case(
        "an optimiser that transformers lacks", f"{FIT} --optimizer adamw_trch", "did you mean 'adamw_torch'"
    ),
    Case(
        "a share above 1", "tdpo cache build --ref model --dataset pairs.jsonl --max-skipped 5", "max_skipped"
    ),
    Case(
        "a misspelt choice",
        "tdpo cache build --ref model --dataset pairs.jsonl --truncation keep-end",
        "did you mean 'keep_end'",
    ),
    Case("a part beyond the last", f"{BUILD} --part 3/2", "--part 3/2: give i/n with whole numbers"),
    Case(
        "more parts than shards",
        f"{BUILD} --part 1/9 --shard-rows 16",
        "the data makes 3 shards, fewer than 9 parts",
    ),
    Case(
        "entries of a distribution that is not to be cached",
        f"{BUILD} --distribution none --head 4",
        "--head 4 does not go with --distribution none",
    ),
    Case("--json without --dry-run", f"{BUILD} --json", "--json is for --dry-run"),
    Case(
        "a day that is none", f"{BUILD} --template-date 2025-02-30", "--template-date 2025-02-30: not a day"
    ),
    Case("a slice of a stream", f"{BUILD} --streaming --split 'train[:4]'", "a stream has no slices"),
    Case("a plan from no rows", "tdpo cache plan --ref model --dataset pairs.jsonl --sample 0", "--sample 0"),
    Case("--rescore below zero", "tdpo cache verify --rescore -1", "rescore"),
    Case("--ref without --rescore", "tdpo cache verify --ref model", "give --rescore N with it"),
    Case("no such configuration file", f"{FIT} --config other.yaml", "other.yaml: No such file"),
    config(
        "a misspelt option in tdpo.yaml",
        "fit: {learning_rte: 1}",
        "tdpo.yaml: fit.learning_rte.*learning_rate",
    ),
    config("a misspelt section", "fot: {}", "no section 'fot'; did you mean 'fit'"),
    config("a section that holds a list", "fit: [1, 2]", "must hold names with values"),
    config("a misspelt hyperparameter in tdpo.yaml", "fit: {set: {alpah: 1}}", "did you mean 'alpha'"),
    config(
        "a misspelt training option in tdpo.yaml",
        "training: {weight_decya: 1}",
        "did you mean 'weight_decay'",
    ),
    config("training: in the wrong place", "fit: {training: {weight_decay: 1}}", "beside fit:, not inside"),
    config("a value out of range in tdpo.yaml", "fit: {epochs: -1}", "must be > 0"),
    config("a tdpo.yaml that is no YAML", "fit: {", "line 1"),
    config("a tdpo.yaml that holds a list", "- a", "expected the sections"),
)
