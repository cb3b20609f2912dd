"""What xhat made it may make anew; whatever else has the name is somebody's own."""

import pytest
import torch
from PIL import Image

from xhat.errors import UsageError
from xhat.evaluation.pictures import new_figure, save_figure, save_grid
from xhat.files.ours import GENERATOR, is_ours, require_free, write_ours

PAGE = f"<!doctype html>{GENERATOR}".encode()


def test_pictures_and_pages_of_ours_are_known(tmp_path):
    save_grid(torch.zeros(4, 1, 8, 8), tmp_path / "grid.png", 2)
    save_figure(new_figure(2, 2), tmp_path / "figure.png")
    write_ours(tmp_path / "page.html", PAGE)
    for path in tmp_path.iterdir():
        assert is_ours(path), path.name
        require_free(path, ours=True)
    with pytest.raises(UsageError, match="exists already: name another file, move it away, or add --force"):
        require_free(tmp_path / "grid.png")


@pytest.mark.parametrize("name", ["own.png", "own.txt", "empty"])
def test_what_is_not_ours_stays(tmp_path, name):
    path = tmp_path / name
    if name.endswith("png"):
        Image.new("L", (4, 4)).save(path)
    else:
        path.write_text("mine" if "." in name else "")
    before = path.read_bytes()
    with pytest.raises(UsageError, match="--force"):
        write_ours(path, PAGE)
    assert path.read_bytes() == before
    write_ours(path, PAGE, force=True)
    assert is_ours(path)


def test_links_and_folders(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="is a folder: name a file"):
        require_free(tmp_path / "folder", force=True)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="--force"):
        require_free(tmp_path / "link", ours=True)
    require_free(tmp_path / "nowhere")
