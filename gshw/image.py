"""The memory image: a layer packed bit for bit as the group and row buffers hold it.

The image differs from the encoded layer in three ways. An empty bundle gets one filler group
(all weights zero), because a group is what starts a drain; it is hidden behind the drain of the
bundle before, which takes at least one cycle. The last group of a bundle carries its drain count.
Offsets are resolved for the width of the stored map (``pitch``). ``docs/format.md`` shows the bits.
"""

import struct
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gshw.benes import switch_settings
from gshw.config import TABLE_WORD_CODES, EngineConfig, Gather, Routing
from gshw.encoding import IDLE_BANK, EncodedLayer
from gshw.errors import GshwError
from gshw.files import write_atomically
from gshw.layout import Field, group_fields, record_fields, word_width

_CHUNK_WORDS = 1 << 15


def pack_words(fields: tuple[Field, ...], values: dict[str, NDArray]) -> NDArray[np.uint32]:
    """Pack field values into words of 32-bit little-endian limbs.

    Parameters
    ----------
    values
        For every field an integer array of shape (n_words, field.count), within its width.

    Returns
    -------
    ndarray
        Shape (n_words, ceil(word_width / 32)), uint32; bits above the word are 0.
    """
    n_words = values[fields[0].name].shape[0]
    n_limbs = -(-word_width(fields) // 32)
    words = np.empty((n_words, n_limbs), dtype=np.uint32)
    for start in range(0, n_words, _CHUNK_WORDS):
        stop = min(start + _CHUNK_WORDS, n_words)
        bits = np.zeros((stop - start, n_limbs * 32), dtype=np.uint8)
        for f in fields:
            chunk = values[f.name][start:stop].astype(np.int64)
            places = np.arange(f.width)
            bits[:, f.start : f.stop] = ((chunk[:, :, None] >> places) & 1).reshape(
                stop - start, f.total_width
            )
        words[start:stop] = np.packbits(bits, axis=1, bitorder="little").view("<u4")
    return words


def unpack_words(fields: tuple[Field, ...], words: NDArray[np.uint32]) -> dict[str, NDArray]:
    """Inverse of :func:`pack_words`: int64 arrays of shape (n_words, field.count)."""
    bits = np.unpackbits(
        np.ascontiguousarray(words.astype("<u4")).view(np.uint8), axis=1, bitorder="little"
    )
    values: dict[str, NDArray] = {}
    for f in fields:
        chunk = bits[:, f.start : f.stop].reshape(words.shape[0], f.count, f.width).astype(np.int64)
        value = (chunk << np.arange(f.width)).sum(axis=2)
        values[f.name] = value - ((value >> (f.width - 1)) << f.width) if f.signed else value
    return values


@dataclass(frozen=True)
class _Records:
    """Drain plan of all bundles, one entry per record."""

    advance: NDArray[np.int64]
    rows: NDArray[np.int64]
    bundle_ptr: NDArray[np.int64]


def _bundle_records(config: EngineConfig, rows: NDArray) -> list[tuple[int, list[int]]]:
    """Records of one bundle: (advance, output row per drain lane or -1)."""
    n_together = config.drain_rows
    n_slices = max(1, -(-int(np.count_nonzero(rows >= 0)) // n_together))
    records: list[tuple[int, list[int]]] = []
    for index in range(n_slices):
        waiting = [
            (lane, int(row))
            for lane, row in enumerate(rows[index * n_together : (index + 1) * n_together])
            if row >= 0
        ]
        first = True
        while waiting or first:
            record, taken, later = [-1] * n_together, {}, []
            for lane, row in waiting:
                block = row // config.block
                bank = block % config.lanes
                if taken.setdefault(bank, block) == block:
                    record[lane] = row
                else:
                    later.append((lane, row))
            waiting, first = later, False
            records.append((int(not waiting), record))
    return records


def drain_records(config: EngineConfig, row: NDArray) -> _Records:
    """Which rows are drained together: rows of different banks, or of the same word.

    Parameters
    ----------
    row
        Shape (n_bundles * rows,): output rows in execution order, -1 for none.
    """
    bundles = row.reshape(-1, config.rows)
    advance: list[int] = []
    rows: list[list[int]] = []
    pointer = [0]
    for bundle in bundles:
        for step, record in _bundle_records(config, bundle):
            advance.append(step)
            rows.append(record)
        pointer.append(len(rows))
    return _Records(
        np.array(advance, dtype=np.int64),
        np.array(rows, dtype=np.int64).reshape(-1, config.drain_rows),
        np.array(pointer, dtype=np.int64),
    )


class LayerImage:
    """Group words and records of one layer, in execution order, before offsets are resolved.

    Parameters
    ----------
    config, layer
        The layer must have been encoded for this engine.

    Attributes
    ----------
    group_ptr
        Shape (n_bundles + 1,): group words of each bundle, fillers included.
    record_ptr
        Shape (n_bundles + 1,): records of each bundle.
    drain
        Shape (n_bundles,): records, hence drain cycles, of each bundle.
    """

    def __init__(self, config: EngineConfig, layer: EncodedLayer) -> None:
        layer.check_config(config)
        self.config = config
        self.layer = layer
        records = drain_records(config, layer.row)
        self._records = records
        self.record_ptr = records.bundle_ptr
        self.drain = np.diff(records.bundle_ptr)
        groups = np.maximum(layer.groups_per_bundle, 1)
        self.group_ptr = np.zeros(groups.size + 1, dtype=np.int64)
        np.cumsum(groups, out=self.group_ptr[1:])

    @property
    def n_groups(self) -> int:
        return int(self.group_ptr[-1])

    @property
    def n_records(self) -> int:
        return int(self.record_ptr[-1])

    @cached_property
    def _source(self) -> NDArray[np.int64]:
        """Encoded group behind each group word, -1 for a filler."""
        source = np.full(self.n_groups, -1, dtype=np.int64)
        bundle = np.repeat(np.arange(self.layer.n_bundles), self.layer.groups_per_bundle)
        encoded = np.arange(self.layer.n_groups)
        source[self.group_ptr[bundle] + encoded - self.layer.bundle_ptr[bundle]] = encoded
        return source

    @cached_property
    def group_cycles(self) -> NDArray[np.int64]:
        """Issue cycles of each group word: 1 when scheduled, else its busiest bank's lanes."""
        cycles = np.ones(self.n_groups, dtype=np.int64)
        if self.config.gather is Gather.ARBITRATED and self.layer.n_groups:
            real = self._source >= 0
            bank = self.layer.bank[self._source[real]].astype(np.int64)
            n_banks = self.config.lanes
            group, lane = np.nonzero(bank != IDLE_BANK)
            load = np.bincount(group * n_banks + bank[group, lane], minlength=len(bank) * n_banks)
            cycles[real] = np.maximum(load.reshape(-1, n_banks).max(axis=1), 1)
        return cycles

    def group_values(self, pitch: int, start: int = 0, stop: int | None = None) -> dict:
        """Field values of the group words ``start:stop`` for a stored map ``pitch`` wide."""
        config, layer = self.config, self.layer
        source = self._source[start:stop]
        real = source >= 0
        offsets = layer.geometry.word_offsets(config, pitch)
        if offsets.size and offsets[-1] >= config.bank_depth:
            raise GshwError(
                f"layer {layer.name!r}: a window spans {offsets[-1] + 1} words per bank, "
                f"bank_depth is {config.bank_depth}"
            )
        n_words = source.size
        drain = np.zeros((n_words, 1), dtype=np.int64)
        last = self.group_ptr[1:] - 1 - start
        inside = (last >= 0) & (last < n_words)
        drain[last[inside], 0] = self.drain[inside]
        offset = np.zeros((n_words, config.lanes), dtype=np.int64)
        offset[real] = offsets[layer.offset[source[real]]]
        weight = np.zeros((n_words, config.lanes * config.block), dtype=np.int64)
        weight[real] = layer.value[source[real]].reshape(-1, config.lanes * config.block)
        values = {"drain": drain, "offset": offset, "weight": weight}
        if config.gather is Gather.ARBITRATED:
            bank = np.full((n_words, config.lanes), IDLE_BANK, dtype=np.int64)
            bank[real] = layer.bank[source[real]]
            values["active"] = (bank != IDLE_BANK).astype(np.int64)
            values["bank"] = np.where(bank == IDLE_BANK, 0, bank)
            values["offset"] = np.where(bank == IDLE_BANK, 0, offset)
        elif config.routing is not Routing.DIRECT:
            bank = np.tile(np.arange(config.lanes), (n_words, 1))
            bank[real] = layer.bank[source[real]]
            if config.routing is Routing.BENES:
                values["switch"] = switch_settings(bank)
            else:
                values["bank"] = bank
        return values

    def record_values(self, start: int = 0, stop: int | None = None) -> dict:
        """Field values of the records ``start:stop``."""
        rows = self._records.rows[start:stop]
        valid = rows >= 0
        parameters = self.layer.requantisation

        def pick(values: NDArray) -> NDArray:
            return np.where(valid, values[rows], 0)

        return {
            "advance": self._records.advance[start:stop, None],
            "valid": valid.astype(np.int64),
            "bias": pick(parameters.bias),
            "multiplier": pick(parameters.multiplier),
            "shift": np.where(valid, parameters.shift[rows], 1),
            "row": np.where(valid, rows, 0),
        }

    def pack_groups(
        self, pitch: int, start: int = 0, stop: int | None = None
    ) -> NDArray[np.uint32]:
        """Group words ``start:stop``; shape (n_words, limbs), see :func:`pack_words`."""
        return pack_words(group_fields(self.config), self.group_values(pitch, start, stop))

    def pack_records(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint32]:
        """Records ``start:stop``; shape (n_records, limbs), see :func:`pack_words`."""
        return pack_words(record_fields(self.config), self.record_values(start, stop))

    def pack_table(self) -> NDArray[np.uint32]:
        """The layer's activation table as words of loads; shape (table_words, limbs).

        Every word holds ``TABLE_WORD_CODES`` entries, the first in the lowest bits.
        """
        config, table = self.config, self.layer.requantisation.table
        assert table is not None, "asked for only where there is one"
        width = config.activation_width
        codes = (table & ((1 << width) - 1)).reshape(-1, TABLE_WORD_CODES)
        words = np.zeros((len(codes), -(-word_width(record_fields(config)) // 32)), dtype=np.uint32)
        words[:, 0] = (codes << (width * np.arange(TABLE_WORD_CODES))).sum(axis=1)
        return words


# --- file ------------------------------------------------------------------------------------

IMAGE_MAGIC = b"GSHWIMG\0"
IMAGE_VERSION = 1
_HEADER = struct.Struct("<8sI32sIIIIII")


@dataclass(frozen=True)
class PackedImage:
    """Contents of a memory-image file.

    Parameters
    ----------
    pitch
        Width in pixels of the stored map that the offsets are for.
    groups, records
        Packed words, shape (n, limbs), uint32.
    """

    pitch: int
    groups: NDArray[np.uint32]
    records: NDArray[np.uint32]


def save_image(path: Path, image: LayerImage, pitch: int) -> None:
    """Write a layer's memory image: header, group words, records (see ``docs/format.md``)."""
    groups, records = image.pack_groups(pitch), image.pack_records()
    payload = groups.tobytes() + records.tobytes()
    header = _HEADER.pack(
        IMAGE_MAGIC,
        IMAGE_VERSION,
        bytes.fromhex(image.config.hash),
        pitch,
        *groups.shape,
        *records.shape,
        zlib.crc32(payload),
    )
    write_atomically(path, header + payload)


def load_image(path: Path, config: EngineConfig) -> PackedImage:
    """Read a memory image and check it against the engine.

    Raises
    ------
    GshwError
        Naming the file: not an image, an unknown version, another engine, truncated or corrupt.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise GshwError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) < _HEADER.size or data[:8] != IMAGE_MAGIC:
        raise GshwError(
            f"{path}: not a gshw memory image (its first 8 bytes must be {IMAGE_MAGIC})"
        )
    _, version, digest, pitch, *shape, checksum = _HEADER.unpack_from(data)
    if version != IMAGE_VERSION:
        raise GshwError(f"{path}: image version must be {IMAGE_VERSION}, not {version}")
    if digest.hex() != config.hash:
        raise GshwError(
            f"{path}: was packed for the engine {digest.hex()[:8]}, not for {config.hash[:8]}"
        )
    n_groups, group_limbs, n_records, record_limbs = shape
    split = n_groups * group_limbs * 4
    expected = split + n_records * record_limbs * 4
    payload = data[_HEADER.size :]
    if len(payload) != expected:
        raise GshwError(
            f"{path}: truncated or overlong: {expected} payload bytes expected, "
            f"{len(payload)} found"
        )
    if zlib.crc32(payload) != checksum:
        raise GshwError(f"{path}: corrupt: checksum does not match")
    words = np.frombuffer(payload, dtype="<u4")
    return PackedImage(
        pitch,
        words[: n_groups * group_limbs].reshape(n_groups, group_limbs),
        words[n_groups * group_limbs :].reshape(n_records, record_limbs),
    )
