"""Video files as clips: every eighth frame of each is kept, sentences choose among these when they are read.

    videos/**/*.mp4                             folders below are classes

A unit is a window of a video: up to `frames_per_item` of its kept frames, read in one pass from the keyframe before.
How many windows a video has is said by its header, so that nothing is decoded to list them; what a header promises
and the file does not hold is a shorter clip, or a broken unit. Frames are numbered by their time, from 0, at the
video's average rate: the same whether one comes to them by decoding on or by seeking.
"""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lvm.pictures import decode
from lvm.pictures.decode import PictureError
from lvm.pictures.geometry import Geometry
from lvm.runtime import UserError
from lvm.sources.base import BrokenItem, Item, writable
from lvm.sources.drawing import DrawingConfig, Frame, Record, draw_record
from lvm.sources.listing import VIDEO_SUFFIXES, list_files
from lvm.sources.remembering import remember, remembered

if TYPE_CHECKING:
    from av import VideoFrame
    from jaxtyping import UInt8

# Part of every fingerprint: raise it when the same files and options give other pictures.
VIDEOS_VERSION = 1

# FFmpeg knows formats that open other files or addresses (playlists, concat); these do neither.
FORMATS = "mov,matroska,avi,gif"
SEEK_MARGIN = 16  # frames: containers find keyframes by decoding time, which runs ahead of the time shown
MIN_BYTES_PER_FRAME = 16  # a header that promises more frames is checked by counting packets
MAX_COUNTED = 10**6  # packets


@dataclass(frozen=True, kw_only=True)
class VideosConfig(DrawingConfig):
    path: str  # a folder, or a file; ~ is the home folder
    name: str = ""  # of the source; the folder's name if empty
    every: int = 8  # each so many-th frame is kept; strides of sentences count kept frames
    frames: int = (
        16  # pictures of a sentence: a video too short for them at `every` is kept denser, as in the reference
    )
    frames_per_item: int = 64  # kept frames of a clip at most; a longer video is cut into windows of about one length
    include: tuple[str, ...] = ()  # patterns of paths below `path`, as "train/*"; empty: everything
    exclude: tuple[str, ...] = ()
    views: int = 0  # of degraded channels, which clips don't have
    derived: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 1 or self.frames < 1:
            raise UserError(f"every {self.every} and frames {self.frames} must be 1 or more")
        if not 1 <= self.frames_per_item <= 2048:
            raise UserError(f"frames_per_item {self.frames_per_item} must be from 1 to 2048")


@dataclass(frozen=True)
class Video:
    path: str  # relative to the source's folder
    frames: int  # by its header; 0 if it cannot be used
    problem: str = ""  # why

    @property
    def id(self) -> str:
        return writable(self.path.rsplit(".", 1)[0])

    @property
    def label(self) -> str:
        return writable(self.path.rpartition("/")[0])


@dataclass(frozen=True)
class Unit:
    """Frames `start`, `start + every`, ... below `stop` of a video (None: to its end), at most `count`."""

    id: str
    video: Video
    start: int
    stop: int | None
    every: int
    count: int


def windows(video: Video, config: VideosConfig) -> list[Unit]:
    """A video's units, of nearly the same number of frames; one also if it cannot be used, so that it is counted."""
    if not video.frames:
        return [Unit(video.id, video, 0, None, 1, 1)]
    every = max(1, min(config.every, (video.frames - 1) // max(1, config.frames - 1)))
    kept = -(-video.frames // every)
    number = -(-kept // config.frames_per_item)
    cuts = [kept * n // number for n in range(number + 1)]
    units = []
    for n, (first, end) in enumerate(pairwise(cuts)):
        id = video.id if number == 1 else f"{video.id}:{first * every}"
        units.append(Unit(id, video, first * every, end * every if n + 1 < number else None, every, end - first))
    return units


# Headers.


def import_av() -> Any:
    try:
        import av
    except ImportError:
        raise UserError('videos are read with PyAV; install it: pip install "lvm[video]"') from None
    return av


def open_video(file: Path, max_pixels: int) -> tuple[Any, Any]:
    """Container and video stream, with a decoder of one thread. Raises `PictureError`."""
    av = import_av()
    try:
        container = av.open(str(file.absolute()), options={"format_whitelist": FORMATS, "protocol_whitelist": "file"})
    except Exception as error:  # damaged files raise a dozen types, as in lvm.pictures.decode
        raise PictureError(str(file), _reason(error)) from None
    try:
        if not container.streams.video:
            raise PictureError(str(file), "holds no video stream")
        stream = container.streams.video[0]
        codec = stream.codec_context
        if codec is None:
            raise PictureError(str(file), "is of a codec that cannot be decoded here")
        if codec.width < 1 or codec.height < 1:
            raise PictureError(str(file), "has no size in its header")
        if codec.width * codec.height > max_pixels:
            reason = f"is {codec.width} x {codec.height} pixels; at most {max_pixels:,} are decoded"
            raise PictureError(str(file), reason)
        codec.thread_count = 1
        codec.options = {"max_pixels": str(max_pixels)}  # sizes may change later
    except BaseException:
        container.close()
        raise
    return container, stream


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({text})"


def rate_of(stream: Any) -> Fraction:
    """Frames a second by the header; 25 where it says nothing of use."""
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate and 0 < rate <= 1000:
            return Fraction(rate.numerator, rate.denominator)
    return Fraction(25)


def time_base_of(stream: Any) -> Fraction:
    """The unit of a stream's times, in seconds."""
    return Fraction(stream.time_base.numerator, stream.time_base.denominator)


def count_frames(file: Path, max_pixels: int) -> int:
    """By the header, or if that says nothing or what cannot be, by counting packets; none is decoded."""
    container, stream = open_video(file, max_pixels)
    with container:
        frames = int(stream.frames)
        if not frames and stream.duration:
            frames = round(stream.duration * time_base_of(stream) * rate_of(stream))
        elif not frames and container.duration:
            frames = round(Fraction(container.duration, 10**6) * rate_of(stream))
        if 0 < frames <= file.stat().st_size // MIN_BYTES_PER_FRAME:
            return frames
        try:
            counted = 0
            for packet in container.demux(stream):
                counted += packet.size > 0
                if counted == MAX_COUNTED:
                    break
        except Exception:  # what lies before the damage counts
            pass
    if not counted:
        raise PictureError(str(file), "holds no frames")
    return counted


def look_at(root: Path, path: str, max_pixels: int) -> Video:
    try:
        return Video(path, count_frames(root / path, max_pixels))
    except (PictureError, OSError) as error:
        return Video(path, 0, getattr(error, "reason", "") or _reason(error))


def look_at_all(root: Path, paths: list[str], max_pixels: int) -> list[Video]:
    """Headers of all files; those that were looked at before and have not changed are remembered."""
    import_av()
    place = remembered("videos", [str(root.resolve()), max_pixels, VIDEOS_VERSION])
    try:
        known = dict(json.loads(place.read_text()))
    except (OSError, ValueError, TypeError):
        known = {}
    stamps = {}
    for path in paths:
        try:
            found = (root / path).stat()
            stamps[path] = [found.st_size, found.st_mtime_ns]
        except OSError:
            stamps[path] = [-1, -1]
    new = [path for path in paths if known.get(path, [None])[0] != stamps[path]]
    with ThreadPoolExecutor(8) as pool:
        for video in pool.map(lambda path: look_at(root, path, max_pixels), new):
            known[video.path] = [stamps[video.path], video.frames, video.problem]
    if new:
        # A problem may pass (rights, a disk that was away): such files are looked at again.
        remember(place, json.dumps({path: known[path] for path in sorted(known) if known[path][1]}))
    return [Video(path, *known[path][1:]) for path in paths]


# Decoding.


class Player:
    """The frames of a file in the order they are shown, each with its number, from at or before frame `start` on."""

    def __init__(self, file: Path, start: int, max_pixels: int) -> None:
        self.file, self.start, self.max_pixels = file, start, max_pixels
        self.rate = Fraction(25)
        self.scaler = import_av().video.reformatter.VideoReformatter()
        self._seeks = True
        self._frames = self._decode(max(0, start - SEEK_MARGIN))
        self._next = next(self._frames, None)
        if start and (not self._seeks or (self._next is not None and self._next[0] > start)):
            self._frames = self._decode(0)
            self._next = next(self._frames, None)

    @property
    def ended(self) -> bool:
        return self._next is None

    def can_go_on(self, start: int, every: int) -> bool:
        """Whether decoding on leads to frame `start` as soon as seeking would, or it is known to lie past the end."""
        if self._next is None:
            return self.start <= start
        return 0 <= start - self._next[0] <= max(SEEK_MARGIN, every)

    def play(self, start: int, stop: int | None, every: int) -> "Iterator[tuple[int, VideoFrame]]":
        """The first frame of each `every` numbers from `start` on. Raises `PictureError` for damage among them."""
        self.start = wanted = start
        while self._next is not None and (stop is None or self._next[0] < stop):
            number, frame = self._next
            if number >= start and frame.is_corrupt:
                raise PictureError(str(self.file), f"is damaged at frame {number}")
            if number >= wanted:
                yield number, frame
                wanted = (number // every + 1) * every
            self._next = next(self._frames, None)

    def _decode(self, seek_to: int) -> "Iterator[tuple[int, VideoFrame]]":
        container, stream = open_video(self.file, self.max_pixels)
        with container:
            self.rate = rate_of(stream)
            scale, begin = time_base_of(stream) * self.rate, stream.start_time or 0
            last = -1
            if seek_to:
                last = 2**62  # a frame without a time after a seek could be any
                try:
                    container.seek(begin + int(seek_to / scale), stream=stream, backward=True)
                except Exception:
                    self._seeks = False
                    return
            try:
                for packet in container.demux(stream):
                    time = packet.dts if packet.pts is None else packet.pts
                    try:
                        frames = packet.decode()
                    except Exception as error:
                        at = None if time is None else round((time - begin) * scale)
                        if at is not None and at < self.start:  # counts against the window before
                            continue
                        where = "near its end" if at is None else f"at frame {at}"
                        raise PictureError(str(self.file), f"is damaged {where} ({_reason(error)})") from None
                    for frame in frames:
                        last = last + 1 if frame.pts is None else round((frame.pts - begin) * scale)
                        yield last, frame
            except PictureError:
                raise
            except Exception as error:  # of the container itself
                raise PictureError(str(self.file), f"is damaged after frame {last} ({_reason(error)})") from None


@dataclass(frozen=True)
class PlayedFrame(Frame):
    """A decoded frame, drawn upright.

    FFmpeg squashes it as a whole, several times faster than PIL. It does so into planes of red, green and blue: packed
    RGB would get half of the colours' resolution.
    """

    picture: Any  # av.VideoFrame
    scaler: Any = None  # av's VideoReformatter, kept from frame to frame: its tables cost as much as a picture

    @property
    def turns(self) -> int:
        """Quarters, counterclockwise."""
        return round(self.picture.rotation / 90) % 4

    @property
    def size(self) -> tuple[int, int]:
        width, height = self.picture.width, self.picture.height
        return (height, width) if self.turns % 2 else (width, height)

    def draw(self, geometry: Geometry, size: int) -> "UInt8[np.ndarray, 'y x 3']":
        transparent = any(component.is_alpha for component in self.picture.format.components)
        if transparent or (geometry.left, geometry.top, geometry.right, geometry.bottom) != (0, 0, *self.size):
            pixels = self.picture.reformat(format="rgba" if transparent else "rgb24").to_ndarray()
            return decode.shrink(Image.fromarray(np.rot90(pixels, self.turns)), size, geometry, self.name)
        pixels = self.scaler.reformat(self.picture, size, size, "gbrp", interpolation="BICUBIC").to_ndarray()
        return geometry.turn(np.rot90(pixels, self.turns))


class VideosSource:
    """A folder of videos; see the head of this file and `lvm.sources.base.Source`.

    Raises `UserError` for a folder without videos, or of which none can be used.
    """

    channels = ("image",)

    def __init__(self, config: VideosConfig) -> None:
        self.config = config
        given = Path(config.path).expanduser()
        self.root = given if given.is_dir() else given.parent
        self.name = config.name or (self.root.resolve().name if given.is_dir() else given.stem)
        self.resize = config.resize
        if given.is_dir():
            paths = list_files(given, VIDEO_SUFFIXES, config.include, config.exclude)
        elif given.is_file():
            paths = [given.name]
        else:
            raise UserError(f"{given} does not exist; name a folder of videos, or a video")
        if not paths:
            which = " that `include` and `exclude` admit" if config.include or config.exclude else ""
            raise UserError(f"{given} holds no videos{which} ({' '.join(VIDEO_SUFFIXES)})")
        videos = look_at_all(self.root, paths, config.max_pixels)
        by_id: dict[str, Video] = {}
        for video in videos:
            if video.id in by_id:
                both = f"{self.root / by_id[video.id].path} and {self.root / video.path}"
                raise UserError(f"{both} have the same stem; remove, rename or exclude one")
            by_id[video.id] = video
        if not any(video.frames for video in videos):
            first = videos[0]
            raise UserError(f"{given} holds no video that can be used; {self.root / first.path}: {first.problem}")
        self.units = [unit for video in videos for unit in windows(video, config)]
        self.labels = tuple(sorted({video.label for video in videos if video.label}))
        self._label_numbers = {label: number for number, label in enumerate(self.labels)}
        self._player: Player | None = None  # of the window read last: the next one often follows it

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_player": None}

    def __len__(self) -> int:
        return len(self.units)

    def unit_id(self, i: int) -> str:
        return self.units[i].id

    def fingerprint(self) -> str:
        options = {key: value for key, value in asdict(self.config).items() if key not in ("path", "name")}
        head = json.dumps({"version": VIDEOS_VERSION, **options}, sort_keys=True)
        lines = (json.dumps([unit.id, unit.video.path, unit.start, unit.every, unit.count]) for unit in self.units)
        return hashlib.sha256("\n".join([head, *lines]).encode()).hexdigest()

    def read(self, i: int, size: int) -> list[Item]:
        unit, config = self.units[i], self.config
        file = self.root / unit.video.path
        if unit.video.problem:
            raise BrokenItem(str(file), unit.video.problem)
        player, self._player = self._player, None  # one that fails is not used again
        try:
            if player is None or player.file != file or not player.can_go_on(unit.start, unit.every):
                player = Player(file, unit.start, config.max_pixels)
            numbers: list[int] = []
            record = Record(
                unit.id,
                unit.video.id,
                _frames(player, unit, numbers),
                is_clip=True,
                label=self._label_numbers.get(unit.video.label, -1),
                licence=config.licence,
                origin=writable(unit.video.path),
            )
            items = draw_record(record, config, size)
        except PictureError as error:
            if player is not None and player.ended:
                self._player = player
            if error.file == unit.id:  # no frames, or of different sizes
                raise BrokenItem(str(file), f"{error.reason} from frame {unit.start} on") from None
            raise BrokenItem(error.file, error.reason) from None
        self._player = player
        meta = {"frames": numbers, "fps": float(player.rate)}
        return [replace(item, meta={**item.meta, **meta}) for item in items]


def _frames(player: Player, unit: Unit, numbers: list[int]) -> Iterator[Frame]:
    """The unit's frames one at a time; their numbers go to `numbers`."""
    for number, frame in player.play(unit.start, unit.stop, unit.every):
        numbers.append(number)
        yield PlayedFrame(frame, f"{player.file} frame {number}", scaler=player.scaler)
        if len(numbers) == unit.count:
            return
