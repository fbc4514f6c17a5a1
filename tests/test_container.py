"""The .bt file: exact round trips, and a ValueError for every possible fault."""

import dataclasses

import numpy as np
import pytest

from bandtok_jax.formats import bt_file

HEADER = bt_file.Header(
    rows=5, codebook_size=1000, row_kind="band", sample_rate_hz=44100, samples_per_column=4096, weight_hash="ab" * 16
)


def random_codes(columns, rows, codebook_size, seed=0):
    return np.random.default_rng(seed).integers(0, codebook_size, (columns, rows), dtype=np.int32)


def test_header_has_at_most_64_bytes(tmp_path):
    assert bt_file.HEADER_BYTES <= 64
    bt_file.write_codes(tmp_path / "a.bt", random_codes(3, 5, 1000), HEADER, 3 * 4096 - 7)
    assert (tmp_path / "a.bt").stat().st_size == bt_file.HEADER_BYTES + -(-3 * 5 * 10 // 8)


@pytest.mark.parametrize("codebook_size", [2, 3, 1000, 1024, 8192, 8193, 65536])
@pytest.mark.parametrize("rows", [1, 5, 16])
def test_round_trip(tmp_path, codebook_size, rows):
    header = dataclasses.replace(HEADER, rows=rows, codebook_size=codebook_size, row_kind="residual")
    for columns in (0, 1, 7, 8, 41):
        codes = random_codes(columns, rows, codebook_size)
        written = bt_file.write_codes(tmp_path / "a.bt", codes, header, columns * 4096)
        back, read = bt_file.read_codes(tmp_path / "a.bt")
        np.testing.assert_array_equal(back, codes)
        assert back.dtype == np.int32 and read == written and read.samples == columns * 4096


def test_packing_agrees_with_the_binary_digits():
    codes = random_codes(1, 50, 1 << 13)[0]
    digits = "".join(f"{code:013b}" for code in codes)
    digits += "0" * (-len(digits) % 8)
    packed = bt_file.pack(codes, 13)
    assert packed == bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8))
    np.testing.assert_array_equal(bt_file.unpack(packed, 13, 50), codes)


def test_streaming_equals_whole(tmp_path):
    codes = random_codes(1000, 5, 1000)
    bt_file.write_codes(tmp_path / "whole.bt", codes, HEADER, 1000 * 4096)
    with bt_file.Writer(tmp_path / "stream.bt", HEADER) as writer:
        for block in np.split(codes, [1, 2, 9, 9, 500]):
            writer.write(block)
        writer.finish(1000 * 4096)
    assert (tmp_path / "whole.bt").read_bytes() == (tmp_path / "stream.bt").read_bytes()
    blocks = list(bt_file.Reader(tmp_path / "stream.bt").blocks(columns=30))
    assert max(len(block) for block in blocks) <= 32
    np.testing.assert_array_equal(np.concatenate(blocks), codes)


def test_every_flipped_byte_and_every_truncation_is_an_error(tmp_path):
    path = tmp_path / "a.bt"
    bt_file.write_codes(path, random_codes(9, 5, 1000), HEADER, 9 * 4096)
    good = path.read_bytes()
    faults = [good[:length] for length in range(len(good))] + [good + b"\0", good + good]
    for position in range(len(good)):
        for change in (0x01, 0x80, 0xFF):
            faults.append(good[:position] + bytes([good[position] ^ change]) + good[position + 1 :])
    for data in faults:
        path.write_bytes(data)
        with pytest.raises(ValueError) as error:
            bt_file.read_codes(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "it is empty"),
        (b"RIFF\x00\x00\x00\x00WAVE", "no .bt file"),
        (bt_file.MAGIC + b"\x02" + bytes(80), "upgrade"),
        (bt_file.MAGIC + b"\x01", "truncated"),
    ],
)
def test_foreign_and_newer_files(tmp_path, data, words):
    (tmp_path / "a.bt").write_bytes(data)
    with pytest.raises(ValueError, match=words):
        bt_file.Reader(tmp_path / "a.bt")


def test_codes_beyond_the_codebook_with_a_right_checksum_are_an_error(tmp_path):
    """The checksums of the file are right, but its codes exceed the codebook."""
    path = tmp_path / "a.bt"
    wide = dataclasses.replace(HEADER, codebook_size=1024)
    bt_file.write_codes(path, np.full((4, 5), 1023), wide, 4 * 4096)
    data = path.read_bytes()
    payload_checksum = bt_file.decode_header(data[:64])[1]
    narrow = dataclasses.replace(HEADER, samples=4 * 4096, columns=4)
    path.write_bytes(bt_file.encode_header(narrow, payload_checksum) + data[64:])
    with pytest.raises(ValueError, match="outside its codebook"):
        bt_file.read_codes(path)


def test_writer_leaves_nothing_behind_after_an_error(tmp_path):
    with pytest.raises(ValueError, match="outside the codebook 0..999"):
        with bt_file.Writer(tmp_path / "a.bt", HEADER) as writer:
            writer.write(np.full((2, 5), 1000))
    with pytest.raises(ValueError, match="do not fit"):
        bt_file.write_codes(tmp_path / "a.bt", random_codes(2, 5, 1000), HEADER, 4096)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError) as missing:
        bt_file.Writer(tmp_path / "none" / "a.bt", HEADER)
    assert missing.value.filename == str(tmp_path / "none" / "a.bt")


@pytest.mark.parametrize("room_bytes", [0, 70, 30_000])
def test_the_error_of_a_full_disk_names_the_file(tmp_path, full_disk, room_bytes):
    with full_disk(room_bytes), pytest.raises(OSError) as error:
        bt_file.write_codes(tmp_path / "a.bt", random_codes(9_000, 5, 1000), HEADER, 9_000 * 4096)
    assert error.value.filename == str(tmp_path / "a.bt") and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "codes, words",
    [
        (np.zeros((3, 4), np.int32), "shape"),
        (np.zeros(5, np.int32), "shape"),
        (np.zeros((3, 5)), "not integers"),
        (np.full((3, 5), -1), "outside the codebook"),
    ],
)
def test_bad_codes(codes, words):
    with pytest.raises(ValueError, match=words):
        bt_file.check_codes(codes, 5, 1000)
    assert bt_file.check_codes(np.zeros((3, 4), np.uint8), 5, 1000, fewer_rows=(2, 4)).dtype == np.int32
