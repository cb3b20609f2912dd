"""A small network of vectors: rows of a table, coefficients, points."""

from torch import Tensor, nn
from torch.nn import functional as F

from xhat.budgets import require_at_most
from xhat.networks.layers import Embedding, float32_edge, rms_norm, to_body, zeroed
from xhat.registry import NETWORKS


class Block(nn.Module):
    """x + linear(silu(linear(norm(x) (1 + scale) + shift))), the second linear map zero at first."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.film = zeroed(nn.Linear(embedding, 2 * width))
        self.expand = nn.Linear(width, 2 * width)
        self.reduce = zeroed(nn.Linear(2 * width, width))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        scale, shift = self.film(e).chunk(2, dim=1)
        out: Tensor = x + self.reduce(F.silu(self.expand(rms_norm(x, 1) * (1 + scale) + shift)))
        return out


@NETWORKS.named("mlp")
class MLP(nn.Module):
    """A residual MLP whose blocks are scaled and shifted by time and label. The output is zero at first.

    Called as net(z (B, D), t (B,), label (B,) or None) -> (B, outputs).

    Args:
        channels: D, numbers of a vector.
        outputs: of the network; by default as many as channels.
        size: of data that are vectors (), as a config knows it.
        classes: number of class labels; None is unconditional.
        width: of the hidden layers.
        depth: number of blocks.
        embedding: width of the time and label vector.

    Raises:
        ValueError: the samples are no vectors.
    """

    def __init__(
        self,
        channels: int = 2,
        outputs: int | None = None,
        size: int | tuple[int, ...] = (),
        classes: int | None = None,
        width: int = 256,
        depth: int = 4,
        embedding: int = 128,
    ) -> None:
        super().__init__()
        require_at_most(1000, depth=depth)
        require_at_most(65_536, width=width, embedding=embedding)
        if size != ():
            raise ValueError("this network is of vectors: of signals, images and volumes choose unet")
        self.channels, self.classes = channels, classes
        self.embedding = Embedding(embedding, classes)
        self.first = nn.Linear(channels, width)
        self.blocks = nn.ModuleList(Block(width, embedding) for _ in range(depth))
        self.last = zeroed(nn.Linear(width, outputs or channels))

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        with float32_edge(z.device):
            x = self.first(z)
        x, e = to_body(x), self.embedding(t, label)
        for block in self.blocks:
            x = block(x, e)
        with float32_edge(z.device):
            out: Tensor = self.last(rms_norm(x, 1).to(self.last.weight.dtype))
        return out

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Weights that map hidden channels to hidden channels, for optimizers that treat matrices apart."""
        inner = [block for block in self.blocks if isinstance(block, Block)]
        found = [w for block in inner for w in (block.expand.weight, block.reduce.weight)]
        return [w for w in found if isinstance(w, nn.Parameter)]
