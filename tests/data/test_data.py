"""Images of every kind, and what is said of broken ones."""

import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import write_pngs
from xhat.data.folder import load_folder
from xhat.data.idx import mnist
from xhat.data.images import to_float, to_uint8
from xhat.data.load import load
from xhat.data.order import Order
from xhat.data.picture import fit
from xhat.errors import DataError


def test_mnist_is_complete():
    """Counts, the published class sizes and a checksum of the pixels."""
    train, test = mnist("train"), mnist("test")
    assert train.pixels.shape == (60000, 1, 28, 28)
    assert test.pixels.shape == (10000, 1, 28, 28)
    assert torch.bincount(test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert train.pixels.long().sum().item() == 1567298545
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]


def test_float_and_uint8_are_inverse():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(every)), every)
    assert to_float(every).aminmax() == (-1.0, 1.0)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


@pytest.mark.parametrize("batch", [3, 10, 25])
def test_order_visits_everything_once_an_epoch(batch):
    order = Order(10, seed=1)
    visited = torch.cat([order.indices(step * batch, batch) for step in range(-(-30 // batch))])[:30]
    for epoch in visited.split(10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert visited[:10].tolist() != visited[10:20].tolist()


def test_order_does_not_depend_on_how_a_batch_is_shared_out():
    whole = Order(10, seed=1).indices(24, 6)
    parts = torch.cat([Order(10, seed=1).indices(24 + first, 2) for first in (0, 2, 4)])
    assert torch.equal(whole, parts)


def test_folder_with_classes_sizes_and_modes(tmp_path):
    root = write_pngs(tmp_path / "images", 6, (20, 16), classes=3)
    Image.new("L", (40, 18), 128).save(root / "class0" / "grey.png")
    Image.new("RGBA", (16, 30), (255, 0, 0, 0)).save(root / "class2" / "clear.png")
    data = load_folder(root)
    assert data.pixels.shape == (8, 3, 16, 16)
    assert data.classes == 3
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert (data.pixels[-1] == 255).all(), "transparent pixels become white"


def test_folder_of_grey_images_stays_grey(tmp_path):
    data = load(str(write_pngs(tmp_path / "g", 3, mode="L")), size=12)
    assert data.pixels.shape == (3, 1, 12, 12)
    assert data.labels is None


def test_palette_images_keep_their_colours():
    palette = Image.new("RGB", (4, 4), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert fit(palette, (4, 4), grey=False)[:, 0, 0].tolist() == [10, 200, 30]


def test_fit_crops_the_centre():
    wide = np.zeros((4, 8), np.uint8)
    wide[:, 2:6] = 255
    assert (fit(Image.fromarray(wide), (4, 4), grey=True) == 255).all()


@pytest.mark.parametrize("shape", [(5, 8, 8), (5, 8, 8, 1), (5, 8, 8, 3), (5, 3, 8, 8)])
def test_arrays_of_each_layout(tmp_path, shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", x=array, y=np.arange(5))
    pixels = load(str(tmp_path / "a.npy")).pixels
    assert pixels.shape == (5, 3 if 3 in shape else 1, 8, 8)
    expected = array if shape[1] == 3 else np.moveaxis(array.reshape(5, 8, 8, -1), 3, 1)
    assert np.array_equal(pixels[:].numpy(), expected)
    assert load(str(tmp_path / "a.npz")).labels.tolist() == [0, 1, 2, 3, 4]


def test_idx_with_labels_beside(tmp_path):
    images = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(struct.pack(">BBBBIII", 0, 0, 8, 3, 2, 4, 4) + images.tobytes())
    labels = struct.pack(">BBBBI", 0, 0, 8, 1, 2) + bytes([1, 0])
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(labels)
    data = load(str(tmp_path / "train-images-idx3-ubyte"))
    assert np.array_equal(data.pixels[:, 0].numpy(), images)
    assert data.labels.tolist() == [1, 0]


def broken(tmp_path, kind):
    """A path that cannot be used, and a word of the message."""
    path = tmp_path / kind
    header = struct.pack(">BBBBIII", 0, 0, 8, 3, 2, 4, 4)
    if kind == "empty-folder":
        path.mkdir()
    elif kind == "empty.npz":
        path.touch()
    elif kind == "cut.npz":
        np.savez(path, images=np.zeros((9, 8, 8), np.uint8))
        path.write_bytes(path.read_bytes()[:100])
    elif kind == "float.npy":
        np.save(path, np.zeros((2, 8, 8)))
    elif kind == "objects.npy":
        np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    elif kind == "flat.npy":
        np.save(path, np.zeros((2, 8), np.uint8))
    elif kind == "cut-idx":
        path.write_bytes(header + bytes(5))
    elif kind == "cut.gz":
        path.write_bytes(gzip.compress(header + bytes(32))[:-12])
    elif kind == "text":
        path.write_text("not an image at all")
    elif kind == "cut-png":
        write_pngs(path, 2)
        (path / "0001.png").write_bytes((path / "0001.png").read_bytes()[:200])
    elif kind == "fake-png":
        path.mkdir()
        (path / "a.png").write_text("no")
    return str(path)


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("missing", "does not exist"),
        ("empty-folder", "no image files"),
        ("empty.npz", "is empty"),
        ("cut.npz", "cannot be read"),
        ("float.npy", "uint8"),
        ("objects.npy", "cannot be read"),
        ("flat.npy", "expected (N, H, W)"),
        ("cut-idx", "cut short"),
        ("cut.gz", "cut short or damaged"),
        ("text", "not an IDX file"),
        ("cut-png", "0001.png is cut short"),
        ("fake-png", "a.png is not an image"),
    ],
)
def test_broken_data_is_named(tmp_path, kind, word):
    with pytest.raises(DataError) as caught:
        load(broken(tmp_path, kind))
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("end", [b"(", b"{'descr': ", b"\x00", b"]" * 99, b"'" * 3])
def test_a_header_that_numpy_cannot_parse(tmp_path, end):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((4, 8, 8), np.uint8))
    data = path.read_bytes()
    path.write_bytes(data.replace(b"}", end)[: len(data)])
    with pytest.raises(DataError, match=r"a\.npy cannot be read as a NumPy file"):
        load(str(path))


def test_no_memory_is_not_called_damage(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.zeros((4, 8, 8), np.uint8))
    monkeypatch.setattr(np, "load", lambda *_, **__: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        load(str(tmp_path / "a.npy"))
