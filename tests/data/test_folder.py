"""What lies in folders that people have: links, hidden files, damaged ones, deep ones, tiny ones, several images in a file."""

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import write_pngs
from xhat.data.folder import default_side, load_folder
from xhat.data.load import load
from xhat.data.scale import scale_of, to_pixels
from xhat.errors import DataError


def noise(side=8, channels=3, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (side, side, channels), dtype=np.uint8)
    return Image.fromarray(values if channels > 1 else values[..., 0])


def notes(images):
    return "\n".join(images.found.notes)


@pytest.mark.trap(39)
def test_hidden_files_and_folders_are_no_images_and_no_classes(tmp_path):
    root = write_pngs(tmp_path / "d", 6, (8, 8), classes=2)
    write_pngs(root / ".ipynb_checkpoints", 2, (8, 8))
    write_pngs(root / "__MACOSX" / "class0", 1, (8, 8))
    (root / "class0" / "._0000.png").write_bytes(b"\0\5\x16\7")
    for name in (".DS_Store", "Thumbs.db"):
        (root / "class1" / name).write_bytes(b"x")
    data = load_folder(root)
    assert (len(data), data.names) == (6, ("class0", "class1"))
    assert "left out: 4 image files, hidden or in hidden folders" in notes(data)


@pytest.mark.trap(39)
def test_a_class_without_images_is_named_and_is_no_class(tmp_path):
    root = write_pngs(tmp_path / "d", 6, (8, 8), classes=2)
    (root / "bird").mkdir()
    data = load_folder(root)
    assert data.names == ("class0", "class1")
    assert "no class, without images: bird" in notes(data)


@pytest.mark.trap(39)
def test_images_beside_the_class_folders_are_why_there_are_no_labels(tmp_path):
    root = write_pngs(tmp_path / "d", 6, (8, 8), classes=2)
    noise().save(root / "stray.png")
    data = load_folder(root)
    assert data.labels is None
    assert data.found.unlabelled == "1 of 7 files outside the sub-folders: stray.png"


def test_links_are_followed_but_not_in_circles(tmp_path):
    store, root = write_pngs(tmp_path / "store", 3, (8, 8)), write_pngs(tmp_path / "d", 4, (8, 8), classes=2)
    (root / "linked").symlink_to(store)
    (root / "linked-too.png").symlink_to(store / "0000.png")
    (root / "class0" / "circle").symlink_to(root)
    (root / "class0" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    data = load_folder(root)
    assert len(data) == 4 + 3 + 1
    assert "left out: 1 link to files that are not there" in notes(data)


def test_all_damaged_files_are_named_in_one_go(tmp_path):
    root = write_pngs(tmp_path / "d", 9, (16, 16))
    for k in (1, 4):
        path = root / f"{k:04d}.png"
        path.write_bytes(path.read_bytes()[:200])
    (root / "0007.png").write_text("no image")
    with pytest.raises(DataError) as caught:
        load_folder(root)
    told = str(caught.value)
    assert "3 of 9 image files cannot be used" in told
    assert all(f"{name} is" in told for name in ("0001.png", "0004.png", "0007.png"))
    assert "\n" not in told
    for path in root.iterdir():
        path.write_text("no image")
    with pytest.raises(DataError, match=r"9 of 9.* and 4 more"):
        load_folder(root)


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "JPG", "tif", "avif", "ico", "tga", "jp2", "qoi", "pcx", "pnm"])
def test_every_format_that_pillow_opens_is_read(tmp_path, suffix):
    kind = Image.registered_extensions()[f".{suffix.lower()}"]
    if kind not in Image.OPEN or kind not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {suffix}")
    noise(16).save(tmp_path / f"a.{suffix}", kind)
    assert load_folder(tmp_path).pixels.shape == (1, 3, 16, 16)


def test_images_of_other_kinds_are_counted(tmp_path):
    root = write_pngs(tmp_path / "d", 2, (8, 8))
    for name in ("a.heic", "b.HEIC", "c.svg", "d.txt"):
        (root / name).write_text("x")
    assert "left out: 2 .heic, 1 .svg" in notes(load_folder(root))
    for path in root.glob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"no image files that can be read .* but 2 \.heic, 1 \.svg: convert them"):
        load_folder(root)


def test_grey_is_decided_by_the_pixels(tmp_path):
    """Grey palettes and RGB files with equal channels are grey; one image with a colour makes the folder colour."""
    grey = noise(8, 1)
    grey.save(tmp_path / "a.png")
    grey.convert("RGB").save(tmp_path / "b.png")
    grey.quantize(256).save(tmp_path / "c.png")
    palette = grey.convert("P")
    assert Image.open(tmp_path / "c.png").mode == "P"
    palette.save(tmp_path / "d.gif")
    data = load_folder(tmp_path)
    assert data.pixels.shape == (4, 1, 8, 8)
    for k in range(4):
        assert np.array_equal(data.pixels[k, 0].numpy(), np.asarray(grey))
    noise(8).quantize(16).save(tmp_path / "e.png")
    data = load_folder(tmp_path)
    assert data.pixels.shape == (5, 3, 8, 8)
    assert np.array_equal(data.pixels[0].numpy(), np.stack([np.asarray(grey)] * 3))


@pytest.mark.trap(40)
def test_twelve_bits_in_sixteen_are_not_dark_and_all_files_share_one_scale(tmp_path):
    values = np.arange(16, dtype=np.uint16).reshape(4, 4)
    Image.fromarray(values * 273).save(tmp_path / "bright.png")  # up to 4095
    Image.fromarray(values * 27).save(tmp_path / "dark.png")  # up to 405
    data = load_folder(tmp_path)
    assert data.found.scale == (0, 4095)
    assert np.array_equal(data.pixels[0, 0].numpy(), values * 17)
    assert np.array_equal(data.pixels[1, 0].numpy(), np.round(values * (27 * 255 / 4095)))


@pytest.mark.trap(40)
def test_eight_bits_in_sixteen_stay_as_they_are(tmp_path):
    values = (np.arange(16, dtype=np.uint16) * 16).reshape(4, 4)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.array_equal(load_folder(tmp_path).pixels[0, 0].numpy(), values)


@pytest.mark.trap(40)
def test_eight_and_sixteen_bits_in_one_folder_are_noted(tmp_path):
    Image.fromarray(np.full((4, 4), 65535, np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.full((4, 4), 255, np.uint8)).save(tmp_path / "plain.png")
    data = load_folder(tmp_path)
    assert (data.pixels == 255).all()
    assert "more than 8 bits in 1 of 2 files: their 0 to 65535 is taken for the 0 to 255 of the others" in notes(data)


@pytest.mark.trap(40)
@pytest.mark.parametrize(
    ("values", "scale", "pixels"),
    [
        (np.float32([0, 0.5, 1, 0.2]), (0, 1), [0, 128, 255, 51]),
        (np.float32([-1, 0, 1, 0.2]), (-1, 1), [0, 128, 255, 153]),
        (np.float32([0, 7, 200, 31.4]), (0, 255), [0, 7, 200, 31]),
        (np.float32([250, 300, 310, 250]), (250, 310), [0, 212, 255, 0]),
        (np.int32([-1000, 0, 1000, 3080]), (-1000, 3080), [0, 62, 125, 255]),
    ],
)
def test_float_and_negative_files(tmp_path, values, scale, pixels):
    Image.fromarray(np.repeat(values, 4).reshape(4, 4)).save(tmp_path / "a.tif")
    data = load_folder(tmp_path)
    assert data.found.scale == pytest.approx(scale)
    assert data.pixels[0, 0, :, 0].tolist() == pixels


def test_a_file_with_values_that_are_not_finite_is_named(tmp_path):
    Image.fromarray(np.float32([[0, np.nan], [1, 2]])).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif holds values that are not finite"):
        load_folder(tmp_path)


@pytest.mark.parametrize("highest", [0, 200, 255, 256, 1000, 4095, 65535])
def test_white_is_the_smallest_number_of_bits_that_holds_all(highest):
    low, high = scale_of(0, highest, whole=True)
    assert low == 0
    assert high >= max(255, highest)
    assert high == 255 or high < 2 * highest
    assert np.log2(high + 1) % 1 == 0
    assert to_pixels(np.array([0, high]), (low, high)).tolist() == [0, 255]


def test_one_value_alone_makes_pixels():
    assert to_pixels(np.full(3, -7.0), scale_of(-7, -7, whole=True)).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ([1, *[64] * 20], 64),
        ([1, 64], 64),
        ([16], 16),
        ([500, 480, 300], 64),
        ([18, 20, 30, 17], 16),
        ([32, 32, 64, 64], 32),
        ([1, 1, 2], 4),
    ],
)
def test_tiny_images_do_not_set_the_size(sides, expected):
    assert default_side(sides) == expected


def test_enlarged_images_are_named(tmp_path):
    root = write_pngs(tmp_path / "d", 4, (24, 20))
    noise(1).save(root / "pixel.png")
    data = load_folder(root)
    assert data.pixels.shape[-1] == 20
    assert data.found.resized == 5
    assert "smaller than 20x20, enlarged: 1 of 5 files: pixel.png" in notes(data)
    assert "smaller than 32x32, enlarged: 5 of 5 files" in notes(load(str(root), 32))
    np.save(tmp_path / "a.npy", np.full((3, 8, 8), 200, np.uint8))
    assert "its images of 8x8 are enlarged to 16x16" in notes(load(str(tmp_path / "a.npy"), 16))


def test_every_page_of_a_tiff_is_an_image_with_its_files_class(tmp_path):
    pages = [noise(8, seed=k) for k in range(3)]
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
    pages[0].save(tmp_path / "cat" / "stack.tif", save_all=True, append_images=[*pages[1:], noise(4)])
    pages[1].save(tmp_path / "dog" / "one.tif")
    data = load_folder(tmp_path)
    assert data.labels.tolist() == [0, 0, 0, 1]
    for k in range(3):
        assert np.array_equal(data.pixels[k].numpy(), np.asarray(pages[k]).transpose(2, 0, 1))
    assert "each page of 1 TIFF file is an image: 3 together" in notes(data)
    assert "left out: 1 TIFF page" in notes(data)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_of_an_animation_the_first_frame_is_read_and_it_is_said(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "lime")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "b.png")
    data = load_folder(tmp_path)
    assert len(data) == 2
    assert data.pixels[0].float().mean((1, 2)).argmax() == 0
    assert f"of 1 animated file the first frame is read: a.{suffix}" in notes(data)


def test_nearly_black_images_are_noticed(tmp_path):
    np.save(tmp_path / "masks.npy", (np.arange(64).reshape(1, 8, 8) % 2).astype(np.uint8))
    assert "no pixel is above 1 of 255" in notes(load(str(tmp_path / "masks.npy")))
    np.save(tmp_path / "masks.npy", np.arange(64).reshape(1, 8, 8) % 2 > 0)
    assert torch.equal(load(str(tmp_path / "masks.npy")).pixels[:].unique(), torch.tensor([0, 255], dtype=torch.uint8))
