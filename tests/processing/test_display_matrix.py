"""The eight ways in which a file may ask a player to turn and mirror it."""

import io
import struct

import numpy as np
import pytest
from videos import HEIGHT, WIDTH, write_video

from qwen25vl.processing.display_matrix import transform
from qwen25vl.processing.video import VideoOptions, load_clip

ONE = 1 << 16
CORNERS = np.array([["R", "G"], ["B", "W"]])
COLOURS = {"R": (255, 0, 0), "G": (0, 255, 0), "B": (0, 0, 255), "W": (255, 255, 255)}
# (a, b, c, d) -> the corners as they are shown, written out by hand
SHOWN = {
    (1, 0, 0, 1): ["RG", "BW"],
    (-1, 0, 0, 1): ["GR", "WB"],
    (1, 0, 0, -1): ["BW", "RG"],
    (-1, 0, 0, -1): ["WB", "GR"],
    (0, 1, -1, 0): ["BR", "WG"],  # a quarter clockwise
    (0, -1, 1, 0): ["GW", "RB"],
    (0, 1, 1, 0): ["RB", "GW"],  # mirrored at the diagonal
    (0, -1, -1, 0): ["WG", "BR"],
}


def quadrants(_: int) -> np.ndarray:
    pixels = np.array([[COLOURS[corner] for corner in row] for row in CORNERS], np.uint8)
    return pixels.repeat(HEIGHT // 2, 0).repeat(WIDTH // 2, 1)


def matrix_of(a: int, b: int, c: int, d: int) -> list[int]:
    return [a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30]


def corners_of(data: bytes) -> list[str]:
    """The nearest colours in the four corners of the first frame."""
    frame = load_clip(data, VideoOptions(nframes=2)).frames[0].permute(1, 2, 0).numpy().astype(int)
    height, width = frame.shape[:2]

    def name(row: int, column: int) -> str:
        pixel = frame[row, column]
        return min(COLOURS, key=lambda colour: abs(pixel - np.array(COLOURS[colour])).sum())

    rows, columns = (height // 4, 3 * height // 4), (width // 4, 3 * width // 4)
    return ["".join(name(row, column) for column in columns) for row in rows]


@pytest.mark.parametrize("turn", SHOWN, ids=str)
@pytest.mark.parametrize("container", ["mp4", "mov"])
def test_all_eight_matrices(turn: tuple[int, int, int, int], container: str) -> None:
    """Only the rotation was used: selfies came out mirrored, and text in them backwards."""
    data = write_video(
        container=container, times_ms=range(0, 800, 100), draw=quadrants, matrix=matrix_of(*turn)
    )
    assert corners_of(data) == SHOWN[turn]
    is_swapped = turn[0] == 0
    expected = (WIDTH, HEIGHT) if is_swapped else (HEIGHT, WIDTH)
    assert load_clip(data).original_size == expected


def test_a_matrix_in_the_track_header() -> None:
    """With the translation and scale that cameras write beside it."""
    data = bytearray(write_video(times_ms=range(0, 800, 100), draw=quadrants))
    at = data.find(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", -2 * ONE, 0, 0, 0, 2 * ONE, 0, WIDTH * ONE, 0, 1 << 30)
    assert corners_of(bytes(data)) == ["GR", "WB"]


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_a_matrix_inside_the_stream(container: str) -> None:
    """H.264 may carry the turn in the stream itself, where only decoded frames tell of it."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(8):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(quadrants(number))))
        output.mux(stream.encode())
    # message 47, display orientation: not cancelled, no flip left to right, flip upside down, no
    # rotation
    message = bytes([0, 0, 0, 1, 6, 47, 3, 0b00100000, 0, 0b00011000, 0x80])
    raw = annex_b(file.getvalue())
    assert corners_of(insert_before_slices(raw, message)) == ["BW", "RG"]


def annex_b(data: bytes) -> bytes:
    """The H.264 stream of a file with start codes instead of lengths."""
    import av

    output = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(output, "w", format="h264") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    return output.getvalue()


def insert_before_slices(raw: bytes, message: bytes) -> bytes:
    parts = raw.split(b"\0\0\1")
    changed = parts[0]
    for part in parts[1:]:
        if part[0] & 0x1F in (1, 5):
            changed += message[1:]
        changed += b"\0\0\1" + part
    return changed


def test_odd_matrices_take_the_nearest_turn() -> None:
    """A matrix of zeros, or a skewed one, gave an empty picture or an error."""
    pixels = quadrants(0)
    assert np.array_equal(transform(pixels, np.zeros(9, np.int32)), pixels)
    skewed = np.array([ONE // 8, ONE, 0, -ONE, ONE // 8, 0, 0, 0, 1 << 30], np.int32)
    assert np.array_equal(transform(pixels, skewed), np.rot90(pixels, -1))
