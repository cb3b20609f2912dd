"""Whether the runs of a study can be trained, found out before the first of them is."""

from xhat.config.build import build_denoiser, build_objective, build_sampling
from xhat.config.config import Config
from xhat.config.data import build_shape
from xhat.data.shape import DataShape
from xhat.errors import UsageError
from xhat.studies.study import Study


def checked_configs(study: Study) -> tuple[dict[str, Config], DataShape]:
    """The config of each change, whose denoiser, objective and sampler have been built once; and the shape of the data.

    Raises:
        UsageError: names the change, and what does not fit.
    """
    configs: dict[str, Config] = {}
    shapes: dict[str, DataShape] = {}
    for change in study.changes:
        try:
            configs[change] = config = study.config(change, study.seeds[0])
            key = f"{config.data} {config.image_size} {config.labels}"
            if key not in shapes:
                shapes[key] = build_shape(config)
            _build(config, shapes[key])
        except ValueError as error:
            raise UsageError(f'change "{change}": {error}') from None
    return configs, next(iter(shapes.values()))


def _build(config: Config, shape: DataShape) -> None:
    denoiser = build_denoiser(config, shape)
    build_objective(config, denoiser)
    build_sampling(config.sampling, denoiser.schedule)
