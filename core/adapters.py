"""PEFT adapters on top of a model: found, told apart, and merged into it."""

import hashlib
import json
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import Any

from .errors import ModelError

CONFIG_NAME = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

# What the configuration says besides what the adapter computes.
_NOT_COMPUTED = ("base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping")


@dataclass(frozen=True)
class Adapter:
    """An adapter as named by the user, there on this machine, its weights not loaded yet."""

    name: str
    """A folder or a hub name, as given."""
    folder: Path
    """Where its files are."""
    option: str = "--ref-adapter"
    """What it was named with, for messages."""

    def identity(self) -> dict[str, Any]:
        """What proves which adapter this is: the hash of its weights and of what it computes with them."""
        config = {k: v for k, v in _config(self.folder).items() if k not in _NOT_COMPUTED}
        if isinstance(targets := config.get("target_modules"), list):
            config["target_modules"] = sorted(targets)  # peft writes a set
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
        with _weights(self.folder).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
        return {"weights_sha256": digest.hexdigest()}

    def merge_into(self, model: Any, *, quantized: bool) -> Any:
        """The model with the adapter's changes; those of quantised layers are computed beside them.

        Raises:
            ModelError: peft is not installed, or the adapter does not fit the model.
        """
        require("peft", "peft", f"{self.option} {self.name}")
        from peft import PeftModel

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers
                adapted = PeftModel.from_pretrained(model, str(self.folder))
            if not quantized:
                # peft has frozen the model; what comes of it may be trained.
                return merge(adapted).requires_grad_(True)
            _merge_head(adapted.get_base_model())
            return adapted.get_base_model()
        except Exception as error:
            # torch lists every weight that does not fit on a line of its own; the second line is the first.
            said = [line.strip() for line in str(error).splitlines() if line.strip()]
            what = shorten(" ".join(said[:2]), 200, placeholder=" ...") if said else type(error).__name__
            raise ModelError(
                f"{self.option} {self.name} does not fit the model {model.config._name_or_path}: {what}; "
                "give the base that it was trained on"
            ) from error


def merge(adapted: Any) -> Any:
    """The model of a peft.PeftModel with the adapter merged into its weights; the PeftModel is used up.

    A head that is tied to the input embedding and has a change of its own gets weights of its own first: the
    embedding must not change with it.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = adapted.get_base_model()
    head: Any = model.get_output_embeddings()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about ties, which are dealt with here
        if isinstance(head, BaseTunerLayer) and head.weight is model.get_input_embeddings().weight:
            layer: Any = head.get_base_layer()
            layer.weight = torch.nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
        return adapted.merge_and_unload(safe_merge=True)


def find_adapter(name: str, *, option: str = "--ref-adapter") -> Adapter:
    """The adapter behind ``name``: a folder, or a hub name whose files are fetched.

    ``option`` is where it was named, for messages.

    Raises:
        ModelError: no such adapter, or one of another kind than peft's.
    """
    folder = Path(name)
    if not folder.is_dir():
        if folder.exists():
            raise ModelError(f"{option} {name}: is a file; give the folder that holds {CONFIG_NAME}")
        folder = _fetch(name, option)
    if not (folder / CONFIG_NAME).is_file():
        raise ModelError(f"{option} {name}: holds no adapter ({CONFIG_NAME} is missing)")
    if not any((folder / weights).is_file() for weights in _WEIGHTS):
        raise ModelError(f"{option} {name}: holds no weights ({_WEIGHTS[0]} is missing)")
    kind = _config(folder).get("peft_type")
    if kind in ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "CPT"):
        raise ModelError(
            f"{option} {name}: is of the kind {kind}, which adds tokens and cannot be merged; use a LoRA"
        )
    return Adapter(name, folder, option)


def adapter_base(folder: Path) -> tuple[str, str | None] | None:
    """The base that an adapter's folder names, and its revision; None for a folder that holds no adapter."""
    if not (folder / CONFIG_NAME).is_file() or (folder / "config.json").is_file():
        return None
    config = _config(folder)
    base = config.get("base_model_name_or_path")
    return (base, config.get("revision")) if isinstance(base, str) and base else None


def adapter_hint(folder: Path, option: str) -> str:
    """What to do with a folder that holds an adapter where a model is wanted; empty where it does not."""
    if not (folder / CONFIG_NAME).is_file():
        return ""
    base = _config(folder).get("base_model_name_or_path") or "BASE"
    if option != "--ref":
        return f"; it is an adapter: merge it into its base, {base}, first"
    return f"; it is an adapter: give its base and the adapter, --ref {base} --ref-adapter {folder}"


def require(package: str, extra: str, option: str) -> None:
    """Check that an optional package is there.

    Raises:
        ModelError: it is not; names the extra that installs it.
    """
    if find_spec(package) is None:
        raise ModelError(f'{option} takes {package}, which is not installed: pip install "tdpo[{extra}]"')


def _fetch(name: str, option: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["adapter_*"]))
    except Exception as error:
        what = shorten(" ".join(str(error).split()), 200, placeholder=" ...")
        raise ModelError(
            f"{option} {name}: no such folder here, and no adapter of that name could be had from the "
            f"hub ({what}); check the path"
        ) from error


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}); save the adapter again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is no configuration of an adapter; save the adapter again")
    return config


def _weights(folder: Path) -> Path:
    return next(folder / name for name in _WEIGHTS if (folder / name).is_file())


def _merge_head(model: Any) -> None:
    """Make the output embedding a plain layer: its logits are computed from its weight, not by calling it."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    head = model.get_output_embeddings()
    if isinstance(head, ModulesToSaveWrapper):
        model.set_output_embeddings(head.modules_to_save[head.active_adapters[0]])
    elif isinstance(head, BaseTunerLayer):
        head.merge(safe_merge=True)
        model.set_output_embeddings(head.get_base_layer())
