"""The data sets of Locatello et al. 2019 and MPI3D, read from the files that their authors publish.

Each has an image for every combination of its factors. Names, sizes and kinds of the factors are declared
here, in the order of disentanglement_lib; where a file says what its images show, it is compared with them.
Nothing is fetched, and nothing is unpickled.
"""

from __future__ import annotations

import gzip
import io
import math
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Annotated, Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from vaezoo.data.grid import GridSplit
from vaezoo.data.splits import Factor, ImageData, Share, assemble
from vaezoo.data.stored import (
    Block,
    ByteImages,
    Source,
    h5_source,
    load_images,
    npy_source,
    npz_source,
    npz_table,
    pack_bits,
    reading,
)
from vaezoo.errors import DataError

PathOption: TypeAlias = Annotated[Path, Field(strict=False)] | None
Gigabytes: TypeAlias = Annotated[float, Field(ge=0)]

SIZE = 64  # height and width that Cars3D and smallNORB are resized to

DSPRITES = (
    Factor("shape", 3, "categorical"),
    Factor("scale", 6, "ordinal"),
    Factor("orientation", 40, "circular"),
    Factor("x", 32, "ordinal"),
    Factor("y", 32, "ordinal"),
)
DSPRITES_FILE = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
DSPRITES_SHAPES = ("square", "ellipse", "heart")

SHAPES3D = (
    Factor("floor_hue", 10, "circular"),
    Factor("wall_hue", 10, "circular"),
    Factor("object_hue", 10, "circular"),
    Factor("scale", 8, "ordinal"),
    Factor("shape", 4, "categorical"),
    Factor("orientation", 15, "ordinal"),
)
SHAPES3D_FILE = "3dshapes.h5"

CARS3D = (
    Factor("elevation", 4, "ordinal"),
    Factor("azimuth", 24, "circular"),
    Factor("object_type", 183, "categorical"),
)
CARS3D_FILE = "nips2015-analogy-data.tar.gz"
CARS3D_MODEL = re.compile(r"car_\d+_mesh\.mat")

SMALLNORB = (
    Factor("category", 5, "categorical"),
    Factor("elevation", 9, "ordinal"),
    Factor("azimuth", 18, "circular"),
    Factor("lighting", 6, "categorical"),
)
SMALLNORB_INSTANCES = 10
SMALLNORB_PARTS = ("5x46789x9x18x6x2x96x96-training", "5x01235x9x18x6x2x96x96-testing")
SMALLNORB_CLASSES = ("animal", "human", "airplane", "truck", "car")

MPI3D = (
    Factor("object_color", 6, "categorical"),
    Factor("object_shape", 6, "categorical"),
    Factor("object_size", 2, "ordinal"),
    Factor("camera_height", 3, "ordinal"),
    Factor("background_color", 3, "categorical"),
    Factor("horizontal_axis", 40, "ordinal"),
    Factor("vertical_axis", 40, "ordinal"),
)
MPI3D_SHAPES = ("cone", "cube", "cylinder", "hexagonal", "pyramid", "sphere")


def dsprites(
    root: Path,
    seed: int = 0,
    *,
    path: PathOption = None,
    validation: Share = 0.1,
    test: Share = 0.1,
) -> ImageData:
    """dSprites: 737,280 binary images of three shapes, 64x64 (Matthey et al. 2017).

    Kept with one bit a pixel, 0.4 GB. The factor "color" of the file, which has one value, is left out. The
    first and the last of the 40 orientations are the same, 0 and 2 pi, so that some images are there twice.

    Args:
        root: folder that holds the file, or dsprites/ with the file in it.
        seed: draws the splits.
        path: the file dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz, or its folder.
        validation: number of validation images, or their fraction of what the test split leaves.
        test: number of test images, or their fraction of all.

    Raises:
        DataError: no file, a damaged one, or other contents.
    """
    project = "the project google-deepmind/dsprites-dataset"
    file = _located("dSprites", path, (root / "dsprites", root), DSPRITES_FILE, project)
    source = npz_source(file, "imgs")
    _check_shape(source, (_count(DSPRITES), 64, 64))
    # The entry `metadata` is a pickle, and is never opened.
    with reading(file):
        classes = npz_table(file, "latents_classes")[:, 1:]
    _check_order(classes, DSPRITES, file)
    pool = GridSplit(pack_bits(source), DSPRITES, label=0)
    return assemble(seed, pool, validation=validation, test=test, factors=DSPRITES, classes=DSPRITES_SHAPES)


def shapes3d(
    root: Path,
    seed: int = 0,
    *,
    path: PathOption = None,
    memory_limit_gb: Gigabytes = 8.0,
    unpack: bool = False,
    validation: Share = 0.1,
    test: Share = 0.1,
) -> ImageData:
    """3D Shapes: 480,000 colour images of an object in a room, 64x64 (Burgess & Kim 2018).

    The images take 5.9 GB.

    Args:
        root: folder that holds the file, or 3dshapes/ with the file in it.
        seed: draws the splits.
        path: the file 3dshapes.h5, or its folder.
        memory_limit_gb: keep the images (10^9 bytes a GB) in memory up to this size.
        unpack: if they do not fit, write them, once, to an uncompressed file beside `path`, and read them
            from there when they are asked for. (In 3dshapes.h5 a compressed chunk is a few pixels of
            thousands of images, so that only a few images a second could be read from it in random order.)
        validation: number of validation images, or their fraction of what the test split leaves.
        test: number of test images, or their fraction of all.

    Raises:
        DataError: no file, a damaged one, or other contents; images that do not fit, without `unpack`.
    """
    project = "the project google-deepmind/3d-shapes"
    file = _located("3D Shapes", path, (root / "3dshapes", root), SHAPES3D_FILE, project)
    source = h5_source(file, "images")
    _check_shape(source, (_count(SHAPES3D), 64, 64, 3))
    _check_order(_h5_table(file, "labels"), SHAPES3D, file)
    pool = GridSplit(load_images(source, memory_limit_gb=memory_limit_gb, unpack=unpack), SHAPES3D)
    return assemble(seed, pool, validation=validation, test=test, factors=SHAPES3D)


def mpi3d(
    root: Path,
    seed: int = 0,
    *,
    variant: Literal["toy", "realistic", "real"] = "toy",
    path: PathOption = None,
    memory_limit_gb: Gigabytes = 8.0,
    unpack: bool = False,
    validation: Share = 0.1,
    test: Share = 0.1,
) -> ImageData:
    """MPI3D: 1,036,800 colour images of a robot arm, rendered or photographed, 64x64 (Gondal et al. 2019).

    The images take 12.7 GB. Those of an uncompressed file (.npz or .npy) are read from it when they are asked
    for if they do not fit into memory; those of a compressed .npz can only be read from first to last.

    Args:
        root: folder that holds the file, or mpi3d_toy/, mpi3d_realistic/ or mpi3d_real/ with the file in it.
        seed: draws the splits.
        variant: simple rendering, realistic rendering, or photographs; also with `path`, for the record.
        path: the file mpi3d_toy.npz (or the variant's), the images.npy that is in it, or the folder.
        memory_limit_gb: keep the images (10^9 bytes a GB) in memory up to this size.
        unpack: if they neither fit nor are uncompressed, write them, once, to an uncompressed file beside
            `path`, and read them from there when they are asked for.
        validation: number of validation images, or their fraction of what the test split leaves.
        test: number of test images, or their fraction of all.

    Raises:
        DataError: no file, a damaged one, or other contents; images that do not fit, without `unpack`.
    """
    name = f"mpi3d_{variant}"
    project = "the project rr-learning/disentanglement_dataset"
    file = _located(f"MPI3D ({variant})", path, (root / name, root), f"{name}.npz", project)
    source = npy_source(file) if file.suffix == ".npy" else npz_source(file, "images")
    _check_shape(source, (_count(MPI3D), 64, 64, 3))
    pool = GridSplit(load_images(source, memory_limit_gb=memory_limit_gb, unpack=unpack), MPI3D, label=1)
    return assemble(seed, pool, validation=validation, test=test, factors=MPI3D, classes=MPI3D_SHAPES)


def cars3d(
    root: Path,
    seed: int = 0,
    *,
    path: PathOption = None,
    validation: Share = 0.1,
    test: Share = 0.1,
) -> ImageData:
    """Cars3D: 17,568 colour images of 183 car models, resized from 128x128 to 64x64 (Reed et al. 2015).

    Args:
        root: folder that holds cars/ with the files, or the archive nips2015-analogy-data.tar.gz.
        seed: draws the splits.
        path: folder of the files car_NNN_mesh.mat, or the archive (.tar.gz) that they are in.
        validation: number of validation images, or their fraction of what the test split leaves.
        test: number of test images, or their fraction of all.

    Raises:
        DataError: no files, a damaged one, other contents, or another number of models.
    """
    places = (root / "cars", root / CARS3D_FILE) if path is None else (path,)
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise DataError(
            f"Cars3D is not at {' or '.join(map(str, places))}; get {CARS3D_FILE} of Reed et al. 2015 (Deep "
            "Visual Analogy-Making), and put it there or say with path= where it is"
        )
    elevations, azimuths, cars = (factor.size for factor in CARS3D)
    named: dict[str, Block] = {}
    for name, stream in _car_files(found):
        with reading(found / name):
            named[name] = _car(stream, azimuths, elevations)
    if len(named) != cars:
        raise DataError(f"{found} holds {len(named)} files car_NNN_mesh.mat, and Cars3D has {cars}")
    # Of the files [azimuth, elevation], in the grid [elevation, azimuth, car].
    grid = np.stack([named[name] for name in sorted(named)]).transpose(2, 1, 0, 3, 4, 5)
    values = torch.from_numpy(np.ascontiguousarray(grid)).flatten(0, 2)
    pool = GridSplit(ByteImages(values, (3, SIZE, SIZE)), CARS3D)
    return assemble(seed, pool, validation=validation, test=test, factors=CARS3D)


def smallnorb(
    root: Path,
    seed: int = 0,
    *,
    path: PathOption = None,
    validation: Share = 0.1,
    test: Share = 0.1,
) -> ImageData:
    """smallNORB: 48,600 grey images of 50 toys, resized from 96x96 to 64x64 (LeCun et al. 2004).

    The left images of both published parts together. The ten toys of a category are not a factor: as in
    disentanglement_lib, an image of chosen factors shows one of them, drawn uniformly.

    Args:
        root: folder that holds small_norb/ with the files, or the files.
        seed: draws the splits.
        path: folder of the six files smallnorb-...-dat.mat, -cat.mat and -info.mat of training and testing,
            each perhaps with .gz.
        validation: number of validation images, or their fraction of what the test split leaves.
        test: number of test images, or their fraction of all.

    Raises:
        DataError: a file missing or damaged, or not one image of every toy from every view.
    """
    places = (root / "small_norb", root) if path is None else (path,)
    first = f"smallnorb-{SMALLNORB_PARTS[0]}-dat.mat"
    folder = next((place for place in places if list(place.glob(f"{first}*"))), places[0])
    parts = [_norb_part(folder, f"smallnorb-{part}") for part in SMALLNORB_PARTS]
    table = np.concatenate([shown for _, shown in parts])

    sizes = (*(factor.size for factor in SMALLNORB), SMALLNORB_INSTANCES)
    total = math.prod(sizes)
    inside = bool(((table >= 0) & (table < sizes)).all())
    numbers = np.ravel_multi_index(tuple(table.T), sizes) if inside else np.empty(0, np.int64)
    if not np.array_equal(np.sort(numbers), np.arange(total)):
        raise DataError(f"the files in {folder} do not hold one image of every toy from every view ({total})")
    values = np.empty((total, SIZE, SIZE, 1), np.uint8)
    values[numbers, :, :, 0] = np.concatenate([images for images, _ in parts])
    images = ByteImages(torch.from_numpy(values), (1, SIZE, SIZE))
    pool = GridSplit(images, SMALLNORB, instances=SMALLNORB_INSTANCES, label=0)
    return assemble(
        seed, pool, validation=validation, test=test, factors=SMALLNORB, classes=SMALLNORB_CLASSES
    )


def _located(title: str, path: Path | None, folders: Sequence[Path], file: str, project: str) -> Path:
    """The published file: at `path`, in the folder `path`, or else in the first of `folders` that has it."""
    if path is None:
        places = [folder / file for folder in folders]
    else:
        places = [path / file if path.is_dir() else path]
    for place in places:
        if place.is_file():
            return place
    raise DataError(
        f"{title} is not at {' or '.join(map(str, places))}; get {file} from {project}, and put it there or "
        "say with path= where it is"
    )


def _count(factors: Sequence[Factor]) -> int:
    return math.prod(factor.size for factor in factors)


def _check_shape(source: Source, shape: tuple[int, ...]) -> None:
    if source.shape != shape:
        raise DataError(f"{source.path} holds images {list(source.shape)}, not {list(shape)}")


def _check_order(table: NDArray[Any], factors: Sequence[Factor], path: Path) -> None:
    """The values [N, F] that a file gives for its images are those of the grid: the last varies fastest."""
    expected = (_count(factors), len(factors))
    if table.shape != expected:
        raise DataError(f"{path} has factors {list(table.shape)}, not {list(expected)}")
    grid = table.reshape(*(factor.size for factor in factors), len(factors))
    for axis, factor in enumerate(factors):
        values = np.moveaxis(grid[..., axis], axis, -1)
        rises = (np.diff(values.reshape(-1, factor.size)[0]) > 0).all()
        if not (rises and (values == values.reshape(-1, factor.size)[0]).all()):
            raise DataError(f"the images of {path} are not in the order of their factors ({factor.name})")


def _h5_table(path: Path, name: str) -> NDArray[Any]:
    import h5py

    with reading(path), h5py.File(path, "r") as file:
        table: NDArray[Any] = file[name][:]
        return table


def _resized(image: Block) -> Block:
    """An image [H, W] or [H, W, 3] in the size of disentanglement_lib, with its filter."""
    return np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def _car_files(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of every model's file, of a folder or an archive; nothing is extracted to the disk."""
    if path.is_dir():
        for file in path.iterdir():
            if CARS3D_MODEL.fullmatch(file.name):
                with file.open("rb") as stream:
                    yield file.name, stream
        return
    with reading(path), tarfile.open(path, "r|*") as archive:
        for member in archive:
            name = Path(member.name).name
            if member.isfile() and CARS3D_MODEL.fullmatch(name):
                content = archive.extractfile(member)
                assert content is not None  # it is a file
                yield name, io.BytesIO(content.read())  # loadmat moves back, which a stream cannot


def _car(stream: IO[bytes], azimuths: int, elevations: int) -> Block:
    """The images of one model, resized: [azimuth, elevation, 64, 64, 3]."""
    from scipy.io import loadmat

    content: Mapping[str, Any] = loadmat(stream, variable_names=["im"])
    images = content.get("im")
    expected = (128, 128, 3, azimuths, elevations)
    if images is None or images.dtype != np.uint8 or images.shape != expected:
        found = "nothing" if images is None else f"{images.dtype} {list(images.shape)}"
        raise ValueError(f"it holds {found} under 'im', not uint8 {list(expected)}")
    flat = np.ascontiguousarray(images.transpose(3, 4, 0, 1, 2)).reshape(-1, 128, 128, 3)
    return np.stack([_resized(image) for image in flat]).reshape(azimuths, elevations, SIZE, SIZE, 3)


def _norb_part(folder: Path, name: str) -> tuple[Block, NDArray[Any]]:
    """Left images of a part, resized, [N, 64, 64], and what they show: the factors and the toy, [N, 5]."""
    dat, cat, info = (_norb_matrix(folder, f"{name}-{kind}.mat") for kind in ("dat", "cat", "info"))
    pairs = dat.ndim == 4 and dat.shape[1] == 2 and dat.dtype == np.uint8
    if not pairs or cat.shape != dat.shape[:1] or info.shape != (len(dat), 4):
        raise DataError(
            f"the files {name} in {folder} hold {dat.dtype} {list(dat.shape)}, {list(cat.shape)} and "
            f"{list(info.shape)}, not pairs of images [N, 2, H, W], categories [N] and what they show [N, 4]"
        )
    instance, elevation, azimuth, lighting = info.T
    # The azimuth is given in steps of 10 degrees: 0, 2, ..., 34.
    shown = np.stack([cat, elevation, azimuth // 2, lighting, instance], 1)
    return np.stack([_resized(image) for image in dat[:, 0]]), shown


def _norb_matrix(folder: Path, name: str) -> NDArray[Any]:
    """A matrix in the binary format of NORB: type, number of axes, at least three sizes, and the values."""
    path = next((place for place in (folder / name, folder / f"{name}.gz") if place.is_file()), None)
    if path is None:
        raise DataError(
            f"smallNORB is not at {folder / name} or {name}.gz; get it from New York University (THE small "
            "NORB DATASET, V1.0), and put it there or say with path= in which folder it is"
        )
    types: dict[int, np.dtype[Any]] = {0x1E3D4C55: np.dtype(np.uint8), 0x1E3D4C54: np.dtype("<i4")}
    with reading(path):
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            content = stream.read()
        magic, axes = np.frombuffer(content, "<i4", 2).tolist()
        if magic not in types or not 1 <= axes <= 4:
            raise ValueError("it is not a matrix of bytes or integers in the format of NORB")
        start = 8 + 4 * max(3, axes)
        shape = np.frombuffer(content, "<i4", axes, 8).tolist()
        expected = start + math.prod(shape) * types[magic].itemsize
        if min(shape) < 1 or len(content) != expected:
            raise ValueError(f"it has {len(content)} bytes, and a matrix {shape} takes {expected}")
        return np.frombuffer(content, types[magic], offset=start).reshape(shape)
