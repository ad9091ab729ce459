"""The encoded-model artefact: one safetensors file, self-describing and checked on loading."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from gshw.config import EngineConfig, Gather, Routing
from gshw.encoding import (
    IDLE_BANK,
    EncodedLayer,
    Requantisation,
    check_maximum,
    check_requantisation,
    decode_weights,
)
from gshw.errors import GshwError
from gshw.files import write_atomically
from gshw.geometry import Geometry, LayerKind, Part

FORMAT = "gshw-encoded-model"
FORMAT_VERSION = 1
_TENSORS = ("value", "offset", "bank", "bundle_ptr", "row", "bias", "multiplier", "shift")


@dataclass(frozen=True, kw_only=True)
class EncodedModel:
    """Encoded layers by name, in execution order.

    Parameters
    ----------
    layers
        All made for one engine.
    chain
        Names of layers whose output codes are the next one's input codes; empty when the model is
        not a plain chain.
    provenance
        Free text by key: command, seed, sparsity, accuracy.
    """

    layers: dict[str, EncodedLayer]
    chain: tuple[str, ...] = ()
    provenance: dict[str, str] = field(default_factory=dict)


def layer_metadata(layer: EncodedLayer) -> dict:
    """What of a layer is no tensor, as plain values."""
    geometry, out = layer.geometry, layer.requantisation
    return {
        "name": layer.name,
        "n_rows": layer.n_rows,
        "kind": geometry.kind.value,
        "in_channels": geometry.in_channels,
        "kernel": geometry.kernel,
        "stride": geometry.stride,
        "padding": geometry.padding,
        "dilation": geometry.dilation,
        "unfold": geometry.unfold,
        "parts": [(part.channels, part.repeats) for part in geometry.parts],
        "low": out.low,
        "high": out.high,
        "signed_input": out.signed_input,
        "maximum": out.maximum,
        "input_scale": layer.input_scale,
        "output_scale": layer.output_scale,
        "metadata": layer.metadata,
    }


def layer_tensors(name: str, layer: EncodedLayer) -> dict[str, NDArray]:
    """The tensors of a layer, by names that begin with its own."""
    out = layer.requantisation
    return {
        f"{name}.value": layer.value,
        f"{name}.offset": layer.offset.astype(np.int32),
        f"{name}.bank": layer.bank,
        f"{name}.bundle_ptr": layer.bundle_ptr,
        f"{name}.row": layer.row,
        f"{name}.bias": out.bias.astype(np.int32),
        f"{name}.multiplier": out.multiplier.astype(np.int32),
        f"{name}.shift": out.shift.astype(np.uint8),
        **({} if out.table is None else {f"{name}.table": out.table.astype(np.int16)}),
    }


def save_model(path: Path | str, config: EngineConfig, model: EncodedModel) -> None:
    """Write the artefact, whole or not at all.

    Raises
    ------
    GshwError
        When a layer was encoded for another engine, or the file cannot be written.
    """
    tensors: dict[str, NDArray] = {}
    for name, layer in model.layers.items():
        layer.check_config(config)
        tensors |= layer_tensors(name, layer)
    metadata = {
        "format": FORMAT,
        "version": str(FORMAT_VERSION),
        "config_hash": config.hash,
        "engine": json.dumps(config.canonical()),
        "layers": json.dumps([layer_metadata(layer) for layer in model.layers.values()]),
        "chain": json.dumps(model.chain),
        "provenance": json.dumps(model.provenance),
    }
    write_atomically(path, archive_bytes(tensors, metadata))


def archive_bytes(tensors: dict[str, NDArray], metadata: dict[str, str]) -> bytes:
    """A safetensors file; the same contents give the same bytes.

    The library writes the metadata in an order that changes from run to run.
    """
    data = save({name: np.ascontiguousarray(t) for name, t in tensors.items()}, metadata)
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[start:]


def archive_format(path: Path | str) -> str | None:
    """The ``format`` of a safetensors file's metadata; None for any other file."""
    try:
        with safe_open(str(path), "np") as archive:
            return (archive.metadata() or {}).get("format")
    except (SafetensorError, OSError, ValueError, TypeError):
        return None


def read_archive(
    path: Path | str, config: EngineConfig, format_name: str, version: int
) -> tuple[dict[str, str], dict[str, NDArray]]:
    """Metadata and tensors of a file of this format for this engine.

    Raises
    ------
    GshwError
        Naming the file: missing, truncated, of another format or version, or for another engine.
    """
    try:
        with safe_open(str(path), "np") as archive:
            metadata = archive.metadata() or {}
            _check_metadata(path, config, metadata, format_name, version)
            tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise GshwError(f"{path}: no such file") from None
    except GshwError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise GshwError(f"{path}: truncated, or not a safetensors file: {error}") from None
    return metadata, tensors


def load_model(path: Path | str, config: EngineConfig) -> EncodedModel:
    """Read an artefact and check it against the engine.

    Raises
    ------
    GshwError
        Naming the file: missing, truncated, not an encoded model, an unknown version, another
        engine, or tensors that break the format.
    """
    metadata, tensors = read_archive(path, config, FORMAT, FORMAT_VERSION)
    try:
        entries = json.loads(metadata["layers"])
        layers = {entry["name"]: read_layer(config, entry, tensors) for entry in entries}
        chain = tuple(json.loads(metadata["chain"]))
        provenance = json.loads(metadata["provenance"])
    except GshwError as error:
        raise GshwError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise GshwError(f"{path}: metadata is incomplete: {error}") from None
    return EncodedModel(layers=layers, chain=chain, provenance=provenance)


def _check_metadata(
    path: Path | str,
    config: EngineConfig,
    metadata: dict[str, str],
    format_name: str,
    version: int,
) -> None:
    """Refuse a foreign file before its tensors are read."""
    if metadata.get("format") != format_name:
        what = format_name.removeprefix("gshw-").replace("-", " ")
        article = "an" if what[0] in "aeiou" else "a"
        raise GshwError(f"{path}: not {article} {what} (metadata format must be {format_name!r})")
    if metadata.get("version") != str(version):
        raise GshwError(f"{path}: format version must be {version}, not {metadata.get('version')}")
    if metadata.get("config_hash") != config.hash:
        raise GshwError(
            f"{path}: was encoded for the engine {metadata.get('config_hash', '')[:8]}, "
            f"not for {config.hash[:8]}"
        )


def read_layer(config: EngineConfig, entry: dict, tensors: dict[str, NDArray]) -> EncodedLayer:
    """Inverse of :func:`layer_metadata` and :func:`layer_tensors`, checked.

    Raises
    ------
    GshwError, KeyError, TypeError, ValueError
        For tensors or values that no encoder writes.
    """
    name = entry["name"]
    found = {}
    for key in _TENSORS:
        if f"{name}.{key}" not in tensors:
            raise GshwError(f"layer {name!r}: tensor {key!r} is missing")
        found[key] = tensors[f"{name}.{key}"]
    table = tensors.get(f"{name}.table")
    geometry = Geometry(
        kind=LayerKind(entry["kind"]),
        in_channels=entry["in_channels"],
        kernel=tuple(entry["kernel"]),
        stride=tuple(entry["stride"]),
        padding=tuple(entry["padding"]),
        dilation=tuple(entry["dilation"]),
        unfold=entry["unfold"],
        parts=tuple(Part(*part) for part in entry.get("parts", ())),
    )
    layer = EncodedLayer(
        name=name,
        config_hash=config.hash,
        geometry=geometry,
        n_rows=entry["n_rows"],
        value=found["value"],
        offset=found["offset"],
        bank=found["bank"],
        bundle_ptr=found["bundle_ptr"].astype(np.int64),
        row=found["row"],
        requantisation=Requantisation(
            bias=found["bias"].astype(np.int64),
            multiplier=found["multiplier"].astype(np.int64),
            shift=found["shift"].astype(np.int64),
            low=entry["low"],
            high=entry["high"],
            signed_input=entry["signed_input"],
            maximum=entry.get("maximum", False),
            table=None if table is None else table.astype(np.int64),
        ),
        input_scale=entry["input_scale"],
        output_scale=entry["output_scale"],
        metadata=entry["metadata"],
    )
    _check_tensors(config, layer)
    return layer


def _check_tensors(config: EngineConfig, layer: EncodedLayer) -> None:
    """Refuse tensors that no encoder writes, so that later stages may trust them."""

    def require(condition: bool, rule: str) -> None:
        if not condition:
            raise GshwError(f"layer {layer.name!r}: {rule}")

    lanes, n_rows = config.lanes, layer.n_rows
    pointer = layer.bundle_ptr
    n_bundles = -(-n_rows // config.rows)
    require(
        pointer.shape == (n_bundles + 1,)
        and pointer[0] == 0
        and bool((np.diff(pointer) >= 0).all()),
        f"bundle_ptr must rise from 0 over {n_bundles} bundles",
    )
    n_groups = layer.n_groups
    shapes = {"value": (n_groups, lanes, config.block), "offset": (n_groups, lanes)}
    shapes |= {"bank": (n_groups, lanes), "row": (n_bundles * config.rows,)}
    for key, shape in shapes.items():
        found = getattr(layer, key).shape
        require(found == shape, f"{key} must have shape {shape}, not {found}")
    bundles = layer.row.reshape(n_bundles, config.rows)
    require(
        np.array_equal(np.sort(layer.row[layer.row >= 0]), np.arange(n_rows))
        and bool((np.diff((bundles >= 0).astype(np.int8), axis=1) <= 0).all()),
        f"row must hold every row 0..{n_rows - 1} once, and -1 only at the end of a bundle",
    )
    n_words = layer.geometry.n_words(config)
    require(
        not n_groups or (layer.offset.min() >= 0 and layer.offset.max() < n_words),
        f"offset must be within 0..{n_words - 1}",
    )
    idle = layer.bank == IDLE_BANK
    if config.gather is Gather.ARBITRATED:
        require(
            bool(((layer.bank < lanes) | idle).all()),
            f"bank must be below {lanes}, or {IDLE_BANK} for an idle lane",
        )
        require(not layer.value[idle].any(), "an idle lane must have weights of zero")
    else:
        wanted = np.arange(lanes)
        given = layer.bank if config.routing is Routing.DIRECT else np.sort(layer.bank, axis=1)
        rule = (
            "lane l must be fed by bank l"
            if config.routing is Routing.DIRECT
            else ("bank must be a permutation of the banks in every group")
        )
        require(bool((given == wanted).all()), rule)
    require(
        not n_groups or int(np.abs(layer.value.astype(np.int64)).max()) <= config.max_weight,
        f"value must be within +-{config.max_weight}",
    )
    weights = decode_weights(config, layer)
    require(
        np.count_nonzero(weights) == np.count_nonzero(layer.value),
        "two slots hold the same weight of the matrix",
    )
    check_requantisation(config, layer.name, weights, layer.requantisation)
    check_maximum(config, layer)
