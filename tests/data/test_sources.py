"""Data sources: the same samples however a step is shared out, what is known of them, and what is no source."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from xhat.config.config import Config
from xhat.config.data import data_of
from xhat.data import Batch, DataSource, WithNull, from_dataset, from_iterable, from_tensors
from xhat.data.images import Images
from xhat.data.parts import Parts
from xhat.data.shape import DataShape, data_shape
from xhat.data.source import Feed, asked, length_of, shape_of
from xhat.data.wrap import as_source
from xhat.errors import DataError
from xhat.rng import Shard

CPU = torch.device("cpu")


def images(n=20, labels=True):
    pixels = torch.arange(n, dtype=torch.uint8).reshape(n, 1, 1, 1).expand(n, 1, 4, 4).contiguous()
    return Images(pixels, torch.arange(n) % 3 if labels else None, 3 if labels else 0, "x")


def source(labels=True, told=True, dropout=0.0, seed=1, of=None):
    """The training images of a config, as the network gets them."""
    own = images(labels=labels) if of is None else of
    shape = data_shape(own, "auto" if told else False)
    config = Config(seed=seed, label_dropout=dropout)
    data = data_of(config, Parts(own, None), shape)
    return Feed(data.train, shape, CPU), data.train


class Counted(Dataset):
    """Samples with their own number in every value."""

    def __init__(self, n=20):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, k):
        return Batch(torch.full((2, 3), float(k)), {"theta": torch.tensor([float(k)])}, {"prompt": f"number {k}", "k": k})


SOURCES = {
    "tensors": lambda: from_tensors(torch.arange(20.0).reshape(20, 1).expand(20, 3), extra={"k": torch.arange(20)}),
    "dataset": lambda: from_dataset(Counted()),
    "stream": lambda: from_iterable([torch.arange(k, k + 4.0).reshape(4, 1).expand(4, 3) for k in range(0, 20, 4)]),
    "null": lambda: WithNull(from_dataset(Counted()), {"theta": -1.0}, 0.5, seed=3),
    "images": lambda: source(dropout=0.5)[1],
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_step_are_the_step(name, parts):
    """In the order of micro-batches, from a source of its own each, as processes have; all that comes with the samples, too."""
    whole, rows = SOURCES[name]().get(5, Shard(0, 8), 8), 8 // parts
    pieces = [SOURCES[name]().get(5, Shard(k * rows, 8), rows) for k in range(parts)]
    assert torch.equal(torch.cat([piece.x0 for piece in pieces]), whole.x0)
    for key, value in (whole.cond or {}).items():
        assert torch.equal(torch.cat([piece.cond[key] for piece in pieces]), value)
    for key, value in (whole.extra or {}).items():
        found = [row for piece in pieces for row in piece.extra[key]]
        assert [str(f) for f in found] == [str(v) for v in value]


@pytest.mark.parametrize("name", SOURCES)
def test_a_step_is_the_same_whatever_was_asked_before(name):
    """A resumed run starts in the middle; a check at the beginning has looked at step 0."""
    own, fresh = SOURCES[name](), SOURCES[name]()
    for step in (0, 1, 2, 0, 7):
        own.get(step, Shard(0, 8), 8)
    assert torch.equal(own.get(3, Shard(0, 8), 8).x0, fresh.get(3, Shard(0, 8), 8).x0)


@pytest.mark.parametrize("name", ["tensors", "dataset", "images"])
def test_an_epoch_visits_each_sample_once(name):
    own = SOURCES[name]()
    seen = torch.cat([own.get(step, Shard(0, 5), 5).x0.flatten(1)[:, 0] for step in range(4)])
    assert sorted(seen.tolist()) == list(range(20))
    again = torch.cat([own.get(step, Shard(0, 5), 5).x0.flatten(1)[:, 0] for step in range(4, 8)])
    assert seen.tolist() != again.tolist()


def test_all_that_belongs_to_a_sample_follows_it():
    batch = from_dataset(Counted()).get(2, Shard(0, 8), 8)
    numbers = batch.x0[:, 0, 0].int().tolist()
    assert batch.cond["theta"].flatten().int().tolist() == numbers
    assert batch.extra["prompt"] == [f"number {k}" for k in numbers]
    assert torch.as_tensor(batch.extra["k"]).tolist() == numbers


def test_a_stream_goes_on_over_its_end_and_reads_functions():
    def batches():
        for k in range(3):
            yield torch.full((2, 1), float(k))

    own = from_iterable(batches)
    assert own.get(0, Shard(0, 8), 8).x0.flatten().tolist() == [0, 0, 1, 1, 2, 2, 0, 0]
    assert own.get(1, Shard(0, 8), 8).x0.flatten().tolist() == [1, 1, 2, 2, 0, 0, 1, 1]
    with pytest.raises(DataError, match="can be read only once"):
        from_iterable(batches())
    with pytest.raises(DataError, match="gives no samples"):
        from_iterable([torch.zeros(0, 1)]).get(0, Shard(0, 2), 2)


def test_a_share_of_the_labels_becomes_the_null_class():
    feed, _ = source(dropout=0.3)
    labels = torch.cat([feed.get(step, Shard(0, 10), 10).cond["label"] for step in range(200)])
    assert float((labels == 3).float().mean()) == pytest.approx(0.3, abs=0.04)  # four standard errors
    x0, cond, _ = source()[0].get(0, Shard(0, 10), 10)
    assert torch.equal(cond["label"], ((x0[:, 0, 0, 0] + 1) * 127.5).round().long() % 3), "each image with its own"


def test_a_share_of_any_condition_is_left_out():
    own = WithNull(from_dataset(Counted()), {"theta": torch.tensor([-7.0])}, 0.3, seed=1)
    theta = torch.cat([own.get(step, Shard(0, 10), 10).cond["theta"] for step in range(200)])
    assert theta.shape == (2000, 1)
    assert float((theta == -7).float().mean()) == pytest.approx(0.3, abs=0.04)
    assert own.fingerprint() == from_dataset(Counted()).fingerprint()


def test_a_network_that_takes_no_labels_gets_none():
    assert source(told=False)[0].get(0, Shard(0, 8), 8).cond is None
    assert source(labels=False)[0].get(0, Shard(0, 8), 8).cond is None


def test_the_fingerprint_is_of_the_images_and_of_labels_that_are_told():
    data = images()
    other = Images(data.pixels, 2 - data.labels, 3, "x")
    told, untold = (source(told=t)[1].fingerprint() for t in (True, False))
    assert source(of=other)[1].fingerprint() != told
    assert source(of=other, told=False)[1].fingerprint() == untold
    assert source(seed=2)[1].fingerprint() == told


def test_fingerprints_know_all_that_comes_with_samples():
    x0, mask = torch.rand(20, 3), torch.rand(20, 3)
    mark = from_tensors(x0, {"a": mask}).fingerprint()
    assert from_tensors(x0, {"a": mask}).fingerprint() == mark
    for other in (
        from_tensors(x0, {"a": mask}, seed=9),
        from_tensors(x0, {"a": mask + 1}),
        from_tensors(x0 + 1, {"a": mask}),
        from_tensors(x0),
        from_tensors(x0[1:]),
    ):
        assert other.fingerprint() != mark
    assert from_dataset(Counted()).fingerprint() != from_dataset(Counted(19)).fingerprint()


def test_some_are_held_out_in_a_fixed_order():
    own = from_tensors(torch.arange(1000.0).reshape(1000, 1), held_out=0.1)
    held = own.held_out
    assert (len(own), len(held)) == (900, 100)
    seen = held.get(0, Shard(0, 100), 100).x0.flatten().tolist()
    assert held.get(0, Shard(0, 100), 100).x0.flatten().tolist() == seen
    assert seen != sorted(seen), "the first few are of all kinds"
    trained = torch.cat([own.get(step, Shard(0, 100), 100).x0 for step in range(9)]).flatten().tolist()
    assert sorted(seen + trained) == list(range(1000))
    assert from_tensors(torch.rand(100, 1)).held_out is None, "five say too little"


@pytest.mark.parametrize(
    ("x0", "shape"),
    [
        (torch.rand(4, 5), DataShape(5, (), None, range=None)),
        (torch.rand(4, 2, 9), DataShape(2, (9,), None, range=None)),
        (torch.rand(4, 1, 8, 6), DataShape(1, (8, 6), None, range=None)),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), DataShape(3, 8, None)),
        (torch.rand(4, 1, 2, 3, 4), DataShape(1, (2, 3, 4), None, range=None)),
        (np.zeros((4, 1, 8, 8), np.uint8), DataShape(1, 8, None)),
    ],
    ids=["vectors", "signals", "fields", "pixels", "volumes", "array"],
)
def test_what_is_known_of_tensors(x0, shape):
    found = shape_of(from_tensors(x0))
    assert (found, found.range, found.sample) == (shape, shape.range, tuple(x0.shape[1:]))
    assert found.is_eight_bit == (found.range == (-1, 1))
    assert shape_of(as_source(x0)) == shape


def test_classes_are_counted_and_other_conditions_named():
    x0, label = torch.rand(6, 2), torch.tensor([0, 2, 1, 2, 0, 1])
    shape = shape_of(from_tensors(x0, {"label": label, "theta": torch.rand(6, 1)}))
    assert (shape.classes, shape.conditions) == (3, ("theta",))
    assert shape_of(from_tensors(x0, {"label": label}, classes=5)).classes == 5
    assert shape_of(from_tensors(x0, {"label": torch.rand(6, 4)})).conditions == ("label",), "a vector is no class"
    assert shape_of(from_dataset(Counted())).conditions == ("theta",)


def test_what_people_have_becomes_a_source_in_one_line():
    pairs = TensorDataset(torch.rand(20, 1, 4, 4), torch.arange(20) % 2)
    for data in (pairs, [(torch.rand(1, 4, 4), k % 2) for k in range(20)], DataLoader(pairs, batch_size=7)):
        batch = as_source(data).get(1, Shard(0, 6), 6)
        assert (batch.x0.shape, batch.cond["label"].shape) == ((6, 1, 4, 4), (6,))
    own = from_tensors(torch.rand(3, 1))
    assert as_source(own) is own
    read = from_dataset(
        [{"image": torch.rand(2), "text": "a"}] * 3, read=lambda item: Batch(item["image"], None, {"t": item["text"]})
    )
    assert read.get(0, Shard(0, 2), 2).extra == {"t": ["a", "a"]}
    for wrong in (3, "path", {"x": 1}):
        with pytest.raises(DataError, match="is no data: give a tensor, a Dataset"):
            as_source(wrong)
    with pytest.raises(DataError, match="list gives a dict for a sample: pass read="):
        as_source([{"image": torch.rand(2)}])


class Wrong:
    """A source that gives whatever it is told to."""

    def __init__(self, given):
        self.given = given

    def get(self, step, shard, rows):
        return self.given(rows) if callable(self.given) else self.given

    def fingerprint(self):
        return ""


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "gave a NoneType: get returns Batch"),
        (torch.rand(2, 3), "gave a Tensor"),
        (Batch(torch.rand(2)), r"x0 \(rows, ...\)"),
        (Batch(torch.zeros(2, 3, dtype=torch.int64)), "x0 as torch.int64: give float32 values, or uint8 pixels"),
        (Batch(torch.rand(5, 3)), "gave 5 samples where 2 were asked for"),
        (Batch(torch.rand(2, 3), {"a": torch.rand(3)}), r'cond\["a"\] has 3 rows for 2 samples'),
        (Batch(torch.rand(2, 3), None, {"m": [1]}), r'extra\["m"\] has 1 rows for 2 samples'),
        (lambda rows: 1 / 0, "failed at get.*division by zero"),
    ],
)
def test_what_is_no_batch_is_said_in_a_line(given, said):
    own = Wrong(given)
    assert isinstance(own, DataSource)
    with pytest.raises(DataError, match=f"the data source Wrong.*{said}"):
        asked(own, 0, Shard(0, 2), 2)


def test_samples_of_another_shape_are_refused_later_too():
    sizes = iter([3, 3, 4])
    own = Wrong(lambda rows: Batch(torch.rand(rows, next(sizes))))
    feed = Feed(own, shape_of(own), CPU)
    feed.get(0, Shard(0, 2), 2)
    with pytest.raises(DataError, match=r"gave samples \(4,\) after samples \(3,\)"):
        feed.get(1, Shard(0, 2), 2)


def test_what_does_not_fit_in_tensors_is_refused():
    with pytest.raises(DataError, match=r'cond\["a"\] has 2 rows for 3 samples'):
        from_tensors(torch.rand(3, 1), {"a": torch.rand(2)})
    with pytest.raises(DataError, match="a vector or more for each sample"):
        from_tensors(torch.rand(3))
    with pytest.raises(DataError, match="holds no samples"):
        from_dataset([])


class Augmented(Counted):
    """Samples that come out otherwise each time."""

    def __getitem__(self, k):
        return torch.rand(2, 3) + np.random.default_rng().random() + k


def test_an_augmented_data_set_is_known_all_the_same():
    before = torch.get_rng_state()
    assert from_dataset(Augmented()).fingerprint() == from_dataset(Augmented()).fingerprint()
    assert from_dataset(Augmented()).fingerprint() != from_dataset(Augmented(19)).fingerprint()
    assert torch.equal(torch.get_rng_state(), before), "looking draws nothing"


def test_a_loader_that_shuffles_gives_each_rank_and_a_resumed_run_the_same():
    def own():
        return from_iterable(DataLoader(torch.arange(40.0).reshape(40, 1), batch_size=7, shuffle=True))

    whole = own()
    seen = [whole.get(step, Shard(0, 8), 8).x0.flatten().tolist() for step in range(12)]
    torch.manual_seed(99)
    ranks = [own(), own()]
    for step in range(12):
        torch.manual_seed(step)  # as a trainer does before each step
        halves = [rank.get(step, Shard(4 * k, 8), 4).x0.flatten().tolist() for k, rank in enumerate(ranks)]
        assert halves[0] + halves[1] == seen[step]
    assert own().get(11, Shard(0, 8), 8).x0.flatten().tolist() == seen[11]
    assert sorted(x for step in seen[:5] for x in step) == list(range(40))
    assert seen[:5] != seen[5:10]


def test_labels_may_be_anywhere():
    data = from_tensors(torch.rand(400, 2), {"label": torch.arange(400) % 3, "soft": torch.rand(400, 3)})
    assert data.held_out is not None
    assert from_tensors(torch.rand(400, 2), {"label": torch.rand(400, 3).round().long()}, classes=3).held_out is not None


def test_a_source_that_fails_to_say_how_long_it_is_is_named():
    class Endless(Counted):
        def __len__(self):
            raise TypeError("a stream has no len()")

    class Broken(Counted):
        name = "my fields"

        def __len__(self):
            return {}["length"]

    assert length_of(Endless()) is None
    with pytest.raises(DataError, match=r"the data source my fields failed at len\(\): KeyError: 'length'"):
        length_of(Broken())
