"""KaTeX in the site: what `make docs` installed from npm becomes files of the site; no page asks anybody else for it."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

FROM, TO = Path(".venv/katex/node_modules/katex/dist"), "assets/katex"
PARTS = ("katex.min.css", "katex.min.js", "contrib/auto-render.min.js", "fonts/*.woff2")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the style, the scripts and the fonts."""
    folder = Path(config.config_file_path).parent / FROM
    found = [sorted(folder.glob(part)) for part in PARTS]
    if not all(found):
        raise PluginError(f"KaTeX is not in {folder}: build the site with make docs, which installs it")
    for path in (path for paths in found for path in paths):
        uri = f"{TO}/{path.relative_to(folder).as_posix()}"
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files
