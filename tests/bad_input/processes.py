"""Several processes, sharding."""

from .case import Case

FIT = "tdpo fit --plugin tdpo2"


def of_two_processes(world):
    world.env(RANK="0", WORLD_SIZE="2", LOCAL_RANK="0")


def alone_under_accelerate(world):
    world.env(ACCELERATE_USE_CPU="True", MASTER_ADDR="127.0.0.1", WORLD_SIZE=None)


def cpu_under_accelerate(world):
    world.env(ACCELERATE_USE_CPU="true")


def megatron(world):
    world.env(ACCELERATE_USE_MEGATRON_LM="true")


def zero(world):
    world.write("zero2.json", '{"zero_optimization": {"stage": 2}}')


CASES = (
    Case("no process at all", f"{FIT} --num-processes 0", "num_processes=0 is out of range"),
    Case(
        "processes that start processes",
        f"{FIT} --num-processes 3",
        "a launcher has started this as 2 processes; leave the option out",
        of_two_processes,
    ),
    Case(
        "accelerate launch that starts one process of several",
        FIT,
        "was asked for several processes, and this one is told of no other.*tdpo fit --num-processes N",
        alone_under_accelerate,
    ),
    Case(
        "sharding without a GPU",
        f"{FIT} --set training.fsdp=true",
        "there is no GPU to shard over",
        cpu_under_accelerate,
    ),
    Case(
        "how to shard without whether",
        f"{FIT} --set training.fsdp_config=shard.json",
        "does nothing without training.fsdp",
    ),
    Case(
        "DeepSpeed where it is not installed",
        f"{FIT} --set training.deepspeed=zero2.json",
        "not installed: pip install deepspeed",
        zero,
    ),
    Case("another way to split a model", FIT, "which tdpo does not train with; use FSDP2", megatron),
)
