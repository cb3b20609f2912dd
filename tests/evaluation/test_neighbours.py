"""Precision and recall against their definition, and where they are known."""

import torch

from xhat.evaluation.neighbours import precision_and_recall


def by_definition(samples, reference, k=3):
    def covered(points, centres):
        hits = 0
        for p in points:
            for i, c in enumerate(centres):
                others = torch.cat([centres[:i], centres[i + 1 :]])
                reach = sorted(float((c - o).norm()) for o in others)[k - 1]
                if float((p - c).norm()) <= reach:
                    hits += 1
                    break
        return hits / len(points)

    return covered(samples, reference), covered(reference, samples)


def test_it_is_its_definition(rng):
    a, b = torch.randn(24, 3, generator=rng).double(), 0.7 * torch.randn(24, 3, generator=rng).double() + 0.5
    assert precision_and_recall(a, b) == by_definition(a, b)


def test_of_the_same_images_both_are_one_and_of_others_none(rng):
    a = torch.randn(50, 4, generator=rng)
    assert precision_and_recall(a, a) == (1.0, 1.0)
    assert precision_and_recall(a, a + 100) == (0.0, 0.0)


def test_a_mode_that_is_not_drawn_costs_recall_alone(rng):
    one, other = torch.randn(400, 2, generator=rng), torch.randn(400, 2, generator=rng) + 50
    precision, recall = precision_and_recall(
        torch.cat([one, one[:400] + 0.01]), torch.cat([one, other])[torch.randperm(800, generator=rng)]
    )
    assert precision > 0.99
    assert abs(recall - 0.5) < 0.03


def test_too_few_say_nothing():
    assert precision_and_recall(torch.zeros(3, 2), torch.zeros(3, 2)) is None
