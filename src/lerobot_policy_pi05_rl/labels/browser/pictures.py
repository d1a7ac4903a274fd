"""The pictures that the page plays: of each camera as many a second as an eye needs, in blocks of JPEGs.

A block is made from whatever LeRobot has stored (a video of any codec, or images in Parquet), so the browser needs no
codec, plays backwards, and starts at the end of an episode without its beginning.
"""

import struct
import threading
from collections import OrderedDict
from io import BytesIO

from PIL import Image

from ...data.pictures.stored_frames import DatasetFrames
from ...data.sources import Source

SHOWN_FPS = 10.0
BLOCK = 32  # pictures
MOST_HEIGHT = 360  # px
QUALITY = 80
CACHED_BYTES = 64 * 2**20


def stride(fps: float) -> int:
    """Every how many-th frame is shown: about ``SHOWN_FPS`` a second, and no more than there are."""
    return max(1, round(fps / SHOWN_FPS))


def shown_frames(length: int, fps: float) -> list[int]:
    """The episode's frames that are shown, the last one in any case."""
    every = stride(fps)
    return list(range((length - 1) % every, length, every))


def block_frames(length: int, fps: float, block: int) -> list[int]:
    """The frames of the ``block``-th block, empty behind the last one."""
    return shown_frames(length, fps)[block * BLOCK : (block + 1) * BLOCK]


def packed(pictures: list[Image.Image]) -> bytes:
    """Each picture as four bytes of its length (big-endian) and a JPEG of at most ``MOST_HEIGHT``."""
    parts = []
    for picture in pictures:
        if picture.height > MOST_HEIGHT:
            picture = picture.resize((round(picture.width * MOST_HEIGHT / picture.height), MOST_HEIGHT))
        written = BytesIO()
        picture.save(written, "JPEG", quality=QUALITY)
        parts += [struct.pack(">I", written.tell()), written.getvalue()]
    return b"".join(parts)


class PictureBlocks:
    """Blocks of pictures of all datasets; those asked for last are kept, in bounded memory. Threads may share it."""

    def __init__(self, sources: list[Source]):
        self.frames = [DatasetFrames(source.dataset.root, source.dataset.meta.info.to_dict()) for source in sources]
        self._kept: OrderedDict[tuple[int, int, str, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def fps(self, source: int) -> float:
        """Frames a second of the dataset."""
        return float(self.frames[source].info["fps"])

    def read(self, source: int, episode: int, length: int, camera: str, block: int) -> bytes:
        """The block, :func:`packed`; empty behind the last one.

        Raises:
            UserError: the pictures are missing or cannot be decoded.
        """
        key = (source, episode, camera, block)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        steps = block_frames(length, self.fps(source), block)
        found = packed(self.frames[source].read(episode, steps, camera)) if steps else b""
        with self._lock:
            self._kept[key] = found
            while sum(map(len, self._kept.values())) > CACHED_BYTES and len(self._kept) > 1:
                self._kept.popitem(last=False)
        return found
