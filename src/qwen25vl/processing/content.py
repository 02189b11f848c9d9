"""What some bytes are, told from their first ones: a picture of which format, or what else.

The name of a file and the type that a server states are not asked; both are often wrong.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

HEAD_BYTES = 1024

FORMATS = ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "AVIF", "JPEG 2000", "PPM", "ICO", "HEIC")

AS_VIDEO = "give it as a video (videos=, -v)"
AS_PAGES = "turn its pages into pictures first and give those"
AS_PNG = "save it as PNG or JPEG first"
UNPACK = "unpack it first"


@dataclass(frozen=True)
class Content:
    """words: "a PDF document"; remedy: what to do with it; picture: its name in FORMATS, or ""."""

    words: str
    remedy: str = ""
    picture: str = ""


def picture(name: str) -> Content:
    return Content(f"{'an' if name[0] in 'AI' else 'a'} {name} picture", picture=name)


JPEG_XL = Content("a JPEG XL picture", AS_PNG)
SIGNATURES: tuple[tuple[bytes, Content], ...] = (
    (rb"\xff\xd8\xff", picture("JPEG")),
    (rb"\x89PNG\r\n\x1a\n", picture("PNG")),
    (rb"RIFF....WEBP", picture("WebP")),
    (rb"GIF8[79]a", picture("GIF")),
    (rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0", picture("BMP")),  # its header's size
    (rb"II[*+]\0|MM\0[*+]", picture("TIFF")),
    (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", picture("JPEG 2000")),
    (rb"P[1-6][ \t\r\n#]|Pf[ \t\r\n]", picture("PPM")),
    (rb"\0\0\x01\0(?!\0\0)", picture("ICO")),
    (rb"\0\0\0\x0cJXL ", JPEG_XL),
    (rb"8BPS", Content("a Photoshop document", AS_PNG)),
    (rb"icns|\0\0\x02\0|qoif|DDS |gimp xcf|v/1\x01|#\?RADIANCE|FORM....ILBM|P7\n",
     Content("a picture of another format", AS_PNG)),
    (rb"FUJIFILMCCD-RAW|IIU\0|IIRO|FOVb", Content("a camera's raw file", AS_PNG)),
    (rb"RIFF....AVI ", Content("an AVI video", AS_VIDEO)),
    (rb"\x1aE\xdf\xa3", Content("a Matroska or WebM video", AS_VIDEO)),
    (rb"FLV\x01", Content("a Flash video", AS_VIDEO)),
    (rb"\0\0\x01[\xb3\xba]|G.{187}G.{187}G", Content("an MPEG video", AS_VIDEO)),
    (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", Content("a Windows Media video", AS_VIDEO)),
    (rb"OggS", Content("an Ogg video or sound", AS_VIDEO)),
    (rb"RIFF....WAVE|ID3|fLaC", Content("a sound file")),
    (rb"%!PS|\xc5\xd0\xd3\xc6", Content("a PostScript document", AS_PAGES)),
    (rb"AT&TFORM", Content("a DjVu document", AS_PAGES)),
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", Content("an Office document", AS_PAGES)),
    (rb"PK\x03\x04", Content("a zip archive or Office document", UNPACK)),
    (rb"\x1f\x8b|BZh[1-9]|\xfd7zXZ\0|\x28\xb5\x2f\xfd|7z\xbc\xaf\x27\x1c|Rar!",
     Content("a compressed file", UNPACK)),
    (rb"\x93NUMPY", Content("a NumPy file", "give np.load() of it")),
    (rb"\x89HDF|PAR1", Content("a data file", "give the picture's own bytes")),
    (rb"\0\x05\x16\x07",
     Content("macOS's notes on a file (AppleDouble)", "give the file without ._")),
    (rb"version https://git-lfs",
     Content("a Git LFS pointer", "fetch the file with `git lfs pull`")),
)  # fmt: skip
PATTERNS = tuple((re.compile(pattern, re.DOTALL), content) for pattern, content in SIGNATURES)

PDF = Content("a PDF document", f"{AS_PAGES} (load_pages() does that, and ask() by itself)")
HTML = Content("a web page (HTML)", "give the address of the picture itself")
SVG = Content("an SVG drawing", "render it to PNG first")
AVIF_BRANDS, HEIC_BRANDS = {b"avif", b"avis"}, {
    b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1",
}  # fmt: skip
MOVIE_BOXES = (b"moov", b"mdat", b"wide", b"skip", b"free", b"pnot")


def identify(data: bytes | bytearray) -> Content | None:
    """What the signature at the beginning says; None for text and for what is unknown."""
    head = bytes(data[:HEAD_BYTES])
    for pattern, content in PATTERNS:
        if pattern.match(head):
            return content
    if b"%PDF-" in head:
        return PDF
    if head[4:8] == b"ftyp":
        return identify_boxes(head)
    if head[4:8] in MOVIE_BOXES:
        return Content("a QuickTime video", AS_VIDEO)
    if head[128:132] == b"DICM":
        return Content("a DICOM file", AS_PNG)
    return None


def identify_boxes(head: bytes) -> Content:
    """Files of ISO's box format name their kinds, the main one first, in their first box."""
    size = int.from_bytes(head[:4], "big")
    brands = {head[i : i + 4] for i in (8, *range(16, min(size, len(head)), 4))}
    if brands & AVIF_BRANDS:
        return picture("AVIF")
    if brands & HEIC_BRANDS:
        return picture("HEIC")
    if head[8:12] == b"crx ":
        return Content("a camera's raw file", AS_PNG)
    if head[8:12] in (b"M4A ", b"M4B "):
        return Content("a sound file")
    return Content("an MP4 or QuickTime video", AS_VIDEO)


def decode_text(data: bytes) -> str | None:
    """The beginning of a text; None where the bytes are none."""
    head = data[:HEAD_BYTES]
    is_wide = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = head.decode("utf-16" if is_wide else "utf-8-sig", errors="ignore")
    except UnicodeDecodeError:
        return None
    printable = sum(character.isprintable() or character in "\t\r\n\f" for character in text)
    if len(text) < len(head) / (2 if is_wide else 1) * 0.3 or printable < len(text) * 0.95:
        return None
    return text


def identify_text(data: bytes) -> Content | None:
    """What kind of text this is; None where it is none."""
    text = decode_text(data)
    if text is None:
        return None
    start = re.sub(r"^\s*(<!--.*?-->\s*)*", "", text, flags=re.DOTALL).lower()
    if re.match(r"(<\?xml.*?\?>\s*)?(<!--.*?-->\s*)*(<!doctype svg|<svg\b)", start, re.DOTALL):
        return SVG
    if re.match(r"(<\?xml.*?\?>\s*)?<(!doctype html|html|head|body|script|meta|title)\b", start):
        return HTML
    if start.startswith("<"):
        return Content("an XML document")
    if re.match(r'\{\s*("|\}|$)|\[\s*("|\{|\[|\]|-?\d|$)', start):
        return Content("JSON text", "give the picture itself, or its address")
    return Content("text", "give a path, an address, base64 or the bytes of a picture")


def refusal(data: bytes) -> str:
    """Why these bytes are no picture that can be read here, and what to do."""
    content = JPEG_XL if data.startswith(b"\xff\n") else identify(data) or identify_text(data)
    known = f"none of the formats {', '.join(FORMATS)}"
    if content is None:
        return f"is no picture, or in {known}"
    if content.remedy == AS_PNG:
        return f"is {content.words}, in {known}; {content.remedy}"
    return f"is no picture but {content.words}" + (f"; {content.remedy}" if content.remedy else "")
