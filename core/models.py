"""Opening models, and saying which ones they are."""

import copy
import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..cache.manifest import Manifest
from ..cache.storage.files import is_url
from .adapters import Adapter, adapter_base, adapter_hint, find_adapter, require
from .errors import ModelError, first_line

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")

# What bitsandbytes is told of each quantisation; part of what proves which reference it was.
QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "8bit": {"load_in_8bit": True},
}


@dataclass(frozen=True)
class ModelSource:
    """A model as named by the user, checked to exist before anything heavy is loaded."""

    name: str
    """A folder or a hub name, as given."""
    revision: str | None
    config: Any
    """Its transformers configuration."""
    adapter: Adapter | None = None
    """What is merged into it."""
    quantization: str | None = None
    """``4bit`` or ``8bit``, how it is loaded."""
    device_map: str | None = None
    """``auto`` to have accelerate spread it over what memory there is."""

    @property
    def local(self) -> bool:
        """Whether it is a folder on this machine."""
        return Path(self.name).is_dir()

    @property
    def max_length(self) -> int | None:
        """Most positions the model takes, or None where it has no such limit."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    def identity(self) -> dict[str, Any]:
        """What proves which weights these are: their content hash, or the hub's commit."""
        proof: dict[str, Any] = {"architecture": (self.config.architectures or [None])[0]}
        if self.local:
            proof["weights_sha256"] = weights_sha256(Path(self.name))
        else:
            proof |= {"name": self.name, "commit": getattr(self.config, "_commit_hash", None)}
        if self.adapter is not None:
            proof["adapter"] = self.adapter.identity()
        if self.quantization is not None:
            proof["quantization"] = QUANTIZATIONS[self.quantization]
        return proof


def find_model(name: str, revision: str | None = None, *, option: str, weights: bool = True) -> ModelSource:
    """The model behind ``name``; reads its configuration, not its weights.

    Args:
        name: a folder or a hub name.
        revision: of a hub model.
        option: the option it came from, for messages.
        weights: whether a folder must hold them.

    Raises:
        ModelError: no such model, or a folder without one.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    folder = Path(name)
    if folder.is_dir():
        _check_folder(folder, option, weights=weights)
    elif folder.exists():
        raise ModelError(
            f"{option} {name}: is a file; give the folder that holds config.json and the weights"
        )
    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        if folder.is_dir():
            raise ModelError(f"{option} {name}: config.json cannot be used: {first_line(error)}") from error
        raise ModelError(
            f"{option} {name}: no such folder here, and no model of that name could be had from the hub "
            f"({first_line(error)}); check the path"
        ) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"{option} {name}: a {config.model_type!r} model is no causal language model; give one that "
            "AutoModelForCausalLM opens"
        )
    return ModelSource(name, revision, config)


def find_start(name: str, *, weights: bool = True, option: str = "--model") -> ModelSource:
    """The model that a policy is or starts from: as :func:`find_model`, or an adapter, which names its base.

    Raises:
        ModelError: no such model, or the adapter's base is not where it says.
    """
    base = adapter_base(Path(name))
    if base is None:
        return find_model(name, option=option, weights=weights)
    try:
        return replace(find_model(*base, option="its base"), adapter=find_adapter(name, option=option))
    except ModelError as error:
        raise ModelError(f"{option} {name}: is an adapter; {error}") from error


def find_reference(
    manifest: Manifest, cache: str | os.PathLike[str], *, option: str, name: str | None = None
) -> ModelSource:
    """The reference that a cache was built from: where its manifest says, or beside the cache's folder.

    With the adapter and the quantisation of the build.

    Args:
        manifest: the cache's.
        cache: the cache's folder.
        option: the option that could have named the model, for messages.
        name: the model, where it was named.

    Raises:
        ModelError: it cannot be opened; asks for its place.
    """
    recorded = manifest.identity.get("reference", {})
    named = name is not None
    if name is not None:
        source = find_model(name, option=option)
    else:
        name = _moved(str(manifest.provenance.get("reference")), cache)
        try:
            source = find_model(name, recorded.get("commit"), option=option)
        except ModelError as error:
            raise ModelError(
                f"the reference that {cache} was built from, {name}, cannot be opened; give its place with "
                f"{option} ({error})"
            ) from error
    source = replace(source, quantization=quantization_of(recorded))
    # A model that is named and is not the recorded base may be it with the adapter merged.
    is_base = not named or all(recorded.get(key) == value for key, value in source.identity().items())
    if "adapter" in recorded and is_base:
        place = _moved(str(manifest.provenance.get("adapter")), cache)
        try:
            adapter = find_adapter(place)
        except ModelError as error:
            raise ModelError(
                f"the adapter of the reference that {cache} was built from, {place}, cannot be opened; "
                f"give a model that it is merged into with {option} ({error})"
            ) from error
        source = replace(source, adapter=adapter)
    return source


def _moved(name: str, cache: str | os.PathLike[str]) -> str:
    """Where a model of this name is: there, or beside the cache's folder, with which it may have moved."""
    beside = None if is_url(cache) else Path(cache).resolve().parent / name
    return str(beside) if beside is not None and not Path(name).exists() and beside.is_dir() else name


def _check_folder(folder: Path, option: str, *, weights: bool) -> None:
    if not (folder / "config.json").is_file():
        hint = adapter_hint(folder, option)
        raise ModelError(f"{option} {folder}: holds no model (config.json is missing){hint}")
    if weights and not weight_files(folder):
        raise ModelError(f"{option} {folder}: holds no weights (*.safetensors); save_pretrained writes them")


def load_model(
    source: ModelSource,
    *,
    dtype: str,
    attention: str | None = None,
    quantization_option: str = "--ref-quantization",
) -> Any:
    """The causal language model in evaluation mode, its adapter merged, dropout untouched.

    It is on the CPU, unless it is quantised or spread by a device map. ``quantization_option`` is where the
    quantisation came from, for messages.

    Raises:
        ModelError: the weights cannot be read, the attention backend is not available, or a package that the
            quantisation or the adapter takes is not installed.
    """
    import torch
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
    if attention is not None:
        options["attn_implementation"] = attention
    if source.device_map is not None:
        options["device_map"] = source.device_map
    if source.quantization is not None:
        check_quantization(source.quantization, quantization_option)
        options["quantization_config"] = _quantization(source.quantization, dtype)
    try:
        found: Any = AutoModelForCausalLM.from_pretrained(
            source.name,
            revision=source.revision,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, by name
            **options,
        )
    except Exception as error:
        raise ModelError(
            f"{source.name}: the model does not load: {type(error).__name__}: {first_line(error)}"
        ) from error
    model, loaded = found
    _check_loaded(source, loaded)
    if source.adapter is not None:
        model = source.adapter.merge_into(model, quantized=source.quantization is not None)
    return model.eval()


def check_quantization(name: str, option: str) -> None:
    """Check that bitsandbytes is there and runs here. ``option`` is where ``name`` came from, for messages.

    Raises:
        ModelError: it is not installed, or knows none of this machine's devices.
    """
    require("bitsandbytes", "quantization", f"{option} {name}")
    from transformers.integrations.bitsandbytes import validate_bnb_backend_availability

    try:
        validate_bnb_backend_availability(raise_exception=True)
    except (RuntimeError, ImportError) as error:
        raise ModelError(
            f"{option} {name}: bitsandbytes does not run on this machine ({first_line(error)}); leave it "
            "out, or use a machine with a supported GPU"
        ) from error


def quantization_of(recorded: dict[str, Any]) -> str | None:
    """The name of the quantisation in a reference's identity; None where it computes in full."""
    return next((k for k, v in QUANTIZATIONS.items() if v == recorded.get("quantization")), None)


def _quantization(name: str, dtype: str) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    settings = dict(QUANTIZATIONS[name])
    if name == "4bit":
        settings["bnb_4bit_compute_dtype"] = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    return BitsAndBytesConfig(**settings)


def _check_loaded(source: ModelSource, loaded: dict[str, Any]) -> None:
    """Refuse weights that do not fill the model: transformers would fill the rest with random numbers."""
    lacking = [f"{name} is not there" for name in sorted(loaded["missing_keys"])]
    lacking += [
        f"{name} is {list(there)} there and {list(wanted)} in config.json"
        for name, there, wanted in sorted(loaded["mismatched_keys"])
    ]
    if lacking:
        more = f", and {len(lacking) - 1} more like it" if len(lacking) > 1 else ""
        raise ModelError(
            f"{source.name}: its weights are not those of its config.json ({lacking[0]}{more}); "
            "fetch or save the model again"
        )


def weightless(source: ModelSource, dtype: str | None = None, attention: str | None = None) -> Any:
    """A model of the source's architecture, every parameter on torch's meta device: shapes, no memory.

    Args:
        source: the model.
        dtype: of its parameters, by torch's name; its configuration's own when None.
        attention: the backend; transformers' choice when None.

    Raises:
        ModelError: transformers cannot make a model of its configuration.
    """
    import torch
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    if dtype is not None:
        options["dtype"] = getattr(torch, dtype)
    try:
        with torch.device("meta"):
            # A copy: a model writes into its configuration, which this one's owner would find changed.
            return AutoModelForCausalLM.from_config(copy.deepcopy(source.config), **options)
    except Exception as error:
        raise ModelError(
            f"{source.name}: no model can be made of its config.json: {first_line(error)}"
        ) from error


def disable_dropout(model: Any) -> None:
    """Set every dropout of the model to zero: a policy is scored as it is, not as a random part of itself."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        # Attention layers keep their dropout as a plain number, read from the configuration at construction.
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a saved model's weights, in order of name; the first kind that exists."""
    for pattern in _WEIGHTS:
        if files := sorted(folder.glob(pattern)):
            return files
    return []


def weights_sha256(folder: Path) -> str:
    """SHA-256 over the weight files and config.json of a model folder."""
    digest = hashlib.sha256(_config_bytes(folder))
    for path in weight_files(folder):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _config_bytes(folder: Path) -> bytes:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("transformers_version", None)
    return json.dumps(config, sort_keys=True).encode()
