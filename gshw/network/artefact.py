"""The compiled network as one file: layers, graph, program and memory image."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from gshw.artefact import archive_bytes, layer_metadata, layer_tensors, read_archive, read_layer
from gshw.config import Config
from gshw.errors import GshwError
from gshw.files import write_atomically
from gshw.lower import Segment, check_addressable
from gshw.network.compile import CompiledNetwork, NodeProgram
from gshw.network.graph import HostNode, MatrixNode, Network, Source, Tensor
from gshw.transfers import TensorLayout

FORMAT = "gshw-compiled-network"
FORMAT_VERSION = 3
_SEGMENT = "segment."
_TABLE = "table."


def save_network(path: Path | str, compiled: CompiledNetwork) -> None:
    """Write the file, whole or not at all; the same network gives the same bytes.

    Raises
    ------
    GshwError
        When the file cannot be written.
    """
    config, network = compiled.config, compiled.network
    tensors = {}
    for name, layer in network.layers.items():
        tensors |= layer_tensors(name, layer)
    for name, table in network.tables.items():
        tensors[f"{_TABLE}{name}"] = table
    for segment in compiled.segments:
        tensors[f"{_SEGMENT}{segment.name}"] = np.frombuffer(segment.data, np.uint8)
    network_data = {
        "tensors": [dataclasses.asdict(tensor) for tensor in network.tensors.values()],
        "nodes": [
            dataclasses.asdict(node) | {"on": "engine" if isinstance(node, MatrixNode) else "host"}
            for node in network.nodes
        ],
        "tables": list(network.tables),
        "inputs": network.inputs,
        "outputs": network.outputs,
    }
    program = {
        "n_samples": compiled.n_samples,
        "base_address": compiled.base_address,
        "n_bytes": compiled.n_bytes,
        "segments": [(segment.name, segment.address) for segment in compiled.segments],
        "layouts": {name: dataclasses.asdict(lay) for name, lay in compiled.layouts.items()},
        "nodes": [dataclasses.asdict(node) for node in compiled.nodes],
    }
    metadata = {
        "format": FORMAT,
        "version": str(FORMAT_VERSION),
        "config_hash": config.engine.hash,
        "engine": json.dumps(config.engine.canonical()),
        "layers": json.dumps([layer_metadata(layer) for layer in network.layers.values()]),
        "network": json.dumps(network_data),
        "program": json.dumps(program),
        "provenance": json.dumps(dict(network.provenance)),
    }
    write_atomically(Path(path), archive_bytes(tensors, metadata))


def load_network(path: Path | str, config: Config) -> CompiledNetwork:
    """Read a compiled network and check it against the core.

    Raises
    ------
    GshwError
        Naming the file: missing, truncated, not a compiled network, for another engine, beyond
        the bus's addresses, or contents that break the format.
    """
    metadata, tensors = read_archive(path, config.engine, FORMAT, FORMAT_VERSION)
    try:
        program = json.loads(metadata["program"])
        check_addressable(config, program["base_address"] + program["n_bytes"], "the network")
        entries = json.loads(metadata["layers"])
        layers = {e["name"]: read_layer(config.engine, e, tensors) for e in entries}
        data = json.loads(metadata["network"])
        network = Network(
            tensors={t["name"]: Tensor(**t | {"size": tuple(t["size"])}) for t in data["tensors"]},
            nodes=tuple(_node(node) for node in data["nodes"]),
            layers=layers,
            inputs=tuple(data["inputs"]),
            outputs=tuple(data["outputs"]),
            provenance=json.loads(metadata["provenance"]),
            tables={name: tensors[f"{_TABLE}{name}"] for name in data["tables"]},
        )
        compiled = CompiledNetwork(
            config=config,
            network=network,
            n_samples=program["n_samples"],
            segments=tuple(
                Segment(name, address, tensors[f"{_SEGMENT}{name}"].tobytes())
                for name, address in program["segments"]
            ),
            layouts={name: _layout(layout) for name, layout in program["layouts"].items()},
            base_address=program["base_address"],
            n_bytes=program["n_bytes"],
            nodes=tuple(_program(node) for node in program["nodes"]),
        )
        _check_programs(compiled)
        return compiled
    except GshwError as error:
        raise GshwError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise GshwError(f"{path}: metadata is incomplete: {error}") from None


def _check_programs(compiled: CompiledNetwork) -> None:
    """Refuse programs and layouts that are not the network's."""
    network = compiled.network
    if [node.name for node in compiled.nodes] != [node.name for node in network.matrices]:
        raise GshwError("programs must be those of the network's matrices, in order")
    numbers = [node.program for node in compiled.nodes]
    names = [segment.name for segment in compiled.segments]
    wanted = [f"program.{n}" for n in range(max(numbers, default=-1) + 1)]
    if numbers != sorted(numbers) or min(numbers, default=-1) or names[: len(wanted)] != wanted:
        raise GshwError("segments must begin with the programs, in order")
    tensors = {name for name, tensor in network.tensors.items() if not tensor.host}
    if set(compiled.layouts) != tensors:
        raise GshwError("layouts must be those of the core's tensors")


def _node(entry: dict) -> MatrixNode | HostNode:
    entry = dict(entry)
    kind = MatrixNode if entry.pop("on") == "engine" else HostNode
    for key in ("sources", "targets"):
        if key in entry:
            entry[key] = tuple(_source(source) for source in entry[key])
    if "tables" in entry:
        entry["tables"] = tuple(entry["tables"])
    return kind(**entry)


def _source(entry: dict) -> Source:
    pairs = {key: tuple(entry[key]) for key in ("step", "start")}
    size = None if entry["size"] is None else tuple(entry["size"])
    return Source(**entry | pairs | {"size": size})


def _program(entry: dict) -> NodeProgram:
    ranges = tuple((first, stop) for first, stop in entry["instructions"])
    return NodeProgram(**entry | {"instructions": ranges})


def _layout(entry: dict) -> TensorLayout:
    return TensorLayout(
        entry["address"], tuple(entry["shape"]), entry["run_bytes"], tuple(entry["strides"])
    )
