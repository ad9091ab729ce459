"""Runs an encoded layer on a device: load, command, read back, tile by tile."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gshw.config import EngineConfig
from gshw.device import Counters, Device
from gshw.encoding import EncodedLayer
from gshw.golden import check_activations, unfold_windows
from gshw.image import LayerImage
from gshw.plan import Plan, StreamTile, WeightTile, stored_items


@dataclass(frozen=True, kw_only=True)
class LayerRun:
    """What a device did with a layer.

    Parameters
    ----------
    output
        Shape (n_samples, out_height, out_width, n_rows), int64 codes.
    counters
        Summed over the commands.
    n_commands
        Commands run.
    loaded_rows, loaded_groups, loaded_records, read_rows
        Words moved by the driver; each takes one further cycle of the load or read port.
    """

    output: NDArray[np.int64]
    counters: Counters
    n_commands: int
    loaded_rows: int
    loaded_groups: int
    loaded_records: int
    read_rows: int


def pack_rows(config: EngineConfig, codes: NDArray) -> NDArray[np.uint32]:
    """Scratchpad or output buffer rows from codes.

    Parameters
    ----------
    codes
        Shape (n, lanes, block, columns), integers within the activation range.

    Returns
    -------
    ndarray
        Shape (n, ceil(lanes * bank_width / 32)), uint32.
    """
    width = config.activation_width
    flat = codes.reshape(codes.shape[0], -1).astype(np.int64) & ((1 << width) - 1)
    if width == 16:
        packed = flat.astype("<u2").view(np.uint8)
    else:
        if width == 4:
            if flat.shape[1] % 2:
                flat = np.pad(flat, ((0, 0), (0, 1)))
            flat = flat[:, 0::2] | flat[:, 1::2] << 4
        packed = flat.astype(np.uint8)
    spare = -packed.shape[1] % 4
    return np.ascontiguousarray(np.pad(packed, ((0, 0), (0, spare)))).view("<u4")


def unpack_rows(config: EngineConfig, words: NDArray[np.uint32], signed: bool) -> NDArray[np.int64]:
    """Inverse of :func:`pack_rows`: shape (n, lanes, block, columns)."""
    width = config.activation_width
    raw = np.ascontiguousarray(words.astype("<u4")).view(np.uint8)
    if width == 16:
        flat = raw.view("<u2").astype(np.int64)
    else:
        flat = raw.astype(np.int64)
        if width == 4:
            flat = np.stack([flat & 15, flat >> 4], axis=2).reshape(flat.shape[0], -1)
    if signed:
        flat -= (flat >> (width - 1)) << width
    n_codes = config.lanes * config.block * config.columns
    return flat[:, :n_codes].reshape(-1, config.lanes, config.block, config.columns)


def _stored_input(layer: EncodedLayer, x: NDArray[np.int64]) -> NDArray[np.int64]:
    if layer.geometry.unfold:
        return unfold_windows(layer.geometry, x)
    (pad_y, pad_x) = layer.geometry.padding
    return np.pad(x, ((0, 0), (pad_y, pad_y), (pad_x, pad_x), (0, 0)))


def run_layer(
    config: EngineConfig,
    layer: EncodedLayer,
    device: Device,
    activations: NDArray,
    *,
    image: LayerImage | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> LayerRun:
    """Run one layer, in tiles where it exceeds a buffer.

    Parameters
    ----------
    activations
        As :func:`gshw.golden.check_activations`.
    image
        The layer's memory image, where the caller has it already.
    on_progress
        Called with (tiles done, tiles in all).

    Raises
    ------
    GshwError
        For a foreign layer, activations out of range, or a layer that cannot fit.
    """
    x = check_activations(config, layer, activations)
    image = image or LayerImage(config, layer)
    plan = Plan(config, image, x.shape[0], x.shape[1], x.shape[2])
    runner = _Runner(config, layer, device, image, plan)
    stored = _stored_input(layer, x)
    out_height, out_width = plan.output_shape
    output = np.zeros((x.shape[0], out_height, out_width, layer.n_rows), dtype=np.int64)
    tiles = plan.stream_tiles()
    for index, tile in enumerate(tiles):
        runner.run_tile(stored, tile, output)
        if on_progress:
            on_progress(index + 1, len(tiles))
    return LayerRun(output=output, counters=runner.counters, **runner.moved)


class _Runner:
    def __init__(
        self,
        config: EngineConfig,
        layer: EncodedLayer,
        device: Device,
        image: LayerImage,
        plan: Plan,
    ) -> None:
        self.config = config
        self.layer = layer
        self.device = device
        self.image = image
        self.plan = plan
        self.counters = Counters()
        self.moved = dict.fromkeys(
            ("n_commands", "loaded_rows", "loaded_groups", "loaded_records", "read_rows"), 0
        )
        self._in_buffers: WeightTile | None = None
        self._packed: dict[int, NDArray[np.uint32]] = {}
        self._load_table()

    def _load_table(self) -> None:
        if self.layer.requantisation.table is not None:
            self.device.load_records(self.config.table_base, self.image.pack_table())

    def run_tile(self, x: NDArray[np.int64], tile: StreamTile, output: NDArray[np.int64]) -> None:
        rows = pack_rows(
            self.config, stored_items(self.config, self.layer.geometry, self.plan, x, tile)
        )
        self.device.load_scratchpad(0, rows)
        self.moved["loaded_rows"] += len(rows)
        for run in self.plan.tile_runs:
            for weights, command in self.plan.commands(run):
                self._load_weights(weights)
                self.counters += self.device.run(command, self.layer.requantisation)
                self.moved["n_commands"] += 1
        self._read_back(tile, output)

    def _load_weights(self, tile: WeightTile) -> None:
        if self._in_buffers == tile:
            return
        if tile.group_start not in self._packed:
            if len(self._packed) * self.config.group_buffer_depth > 1 << 18:
                self._packed.clear()
            self._packed[tile.group_start] = self.image.pack_groups(
                self.plan.pitch, tile.group_start, tile.group_stop
            )
        groups = self._packed[tile.group_start]
        self.device.load_groups(0, groups)
        self.moved["loaded_groups"] += len(groups)
        if tile.record_stop > tile.record_start:
            records = self.image.pack_records(tile.record_start, tile.record_stop)
            self.device.load_records(0, records)
            self.moved["loaded_records"] += len(records)
        self._in_buffers = tile

    def _read_back(self, tile: StreamTile, output: NDArray[np.int64]) -> None:
        plan, config = self.plan, self.config
        height, width = plan.item_shape
        n_rows = plan.n_sets * plan.item_output_words
        words = self.device.read_output(0, n_rows)
        self.moved["read_rows"] += n_rows
        codes = unpack_rows(config, words, self.layer.requantisation.signed_output)
        items = codes.reshape(plan.n_sets, height, width, plan.output_words, -1, config.columns)
        items = items.transpose(0, 5, 1, 2, 3, 4).reshape(
            plan.n_sets, config.columns, height, width, -1
        )
        out_height, out_width = plan.output_shape
        for item_set in range(plan.n_sets):
            for column in range(config.columns):
                sample, y, column_x = tile.items[item_set, column]
                if sample < 0:
                    continue
                stop_y, stop_x = min(y + height, out_height), min(column_x + width, out_width)
                output[sample, y:stop_y, column_x:stop_x] = items[
                    item_set, column, : stop_y - y, : stop_x - column_x, : self.layer.n_rows
                ]
