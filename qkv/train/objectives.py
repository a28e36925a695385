"""Training objectives: functions from a model and a batch to a `Loss`."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from qkv.models.noise import Prediction
from qkv.models.vae import VAE
from qkv.train.loop import Loss


def autoencoding(vae: VAE, pictures: Tensor, generator: torch.Generator, *, kl: float = 1e-5) -> Loss:
    """Latent diffusion (2112.10752), eq. 25, with L1 distances of the pictures, of their edges and of their colours
    seen from afar in place of the perceptual and adversarial losses, which need networks of their own.

    Green against magenta varies so little between pictures that an autoencoder leaves it out and never finds it again:
    purple turns grey. So the colours are weighed along `opponent` axes, and the first latent channel is given a hint.
    pictures (B, 3, Y, X) in [-1, 1]; `kl` weighs the mean over the latent's numbers.
    """
    mean, log_variance = vae.distribution(pictures)
    mean, log_variance = mean.float(), log_variance.float()
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    latent = mean + torch.exp(0.5 * log_variance) * noise
    drawn = vae.decode((latent - vae.config.shift) * vae.config.scaling).float()
    pixel = F.l1_loss(drawn, pictures)
    edge = F.l1_loss(drawn.diff(dim=-1), pictures.diff(dim=-1)) + F.l1_loss(drawn.diff(dim=-2), pictures.diff(dim=-2))
    far, drawn_far = (opponent(F.avg_pool2d(seen, vae.config.factor)) for seen in (pictures, drawn))
    colour = F.l1_loss(drawn_far, far)
    hint = F.mse_loss(mean[:, 0], far[:, 2])
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    parts = {"pixel": pixel, "edge": edge, "colour": colour, "hint": hint, "kl": divergence}
    loss = pixel + edge + colour + 0.2 * hint + kl * divergence
    return Loss(loss, {name: part.detach() for name, part in parts.items()})


def opponent(pictures: Tensor) -> Tensor:
    """(B, 3, Y, X) of red, green, blue as lightness, red against blue, green against magenta, each over about its
    deviation in the pictures of emblem."""
    red, green, blue = pictures.unbind(1)
    axes = ((red + green + blue) / 3 / 0.46, (red - blue) / 2 / 0.35, (green - (red + blue) / 2) / 2 / 0.12)
    return torch.stack(axes, dim=1)


def contrasting(pictures: Tensor, texts: Tensor, log_scale: Tensor, same: Tensor) -> Tensor:
    """CLIP (2103.00020), figure 3: each picture finds its text, each of their texts its picture.

    pictures (B, P) and texts (B + N, P), of length 1: first those of the pictures, then N that are only wrong answers;
    `same` (B, B + N) is True where both show one concept: such are not held against each other.
    """
    logits = log_scale.exp().clamp(max=100) * pictures.float() @ texts.float().mT  # (B, B + N)
    here = torch.arange(len(logits), device=logits.device)
    own = torch.eye(*logits.shape, dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(same & ~own, -torch.inf)
    return 0.5 * (F.cross_entropy(logits, here) + F.cross_entropy(logits[:, : len(here)].mT, here))


def sigmoid_contrasting(pictures: Tensor, texts: Tensor, log_scale: Tensor, bias: Tensor, same: Tensor) -> Tensor:
    """SigLIP (2303.15343), section 3.2, algorithm 1: every pair of a picture and a text is judged by itself, as its own
    or as another's; summed over all pairs, over B. It knows no batch-wide sum, so a wrong answer costs what it costs.

    Vectors and `same` as for `contrasting`; `log_scale` and `bias` are learnt, from ln 10 and -10 on. Pairs of one
    concept that are not each other's own are left out.
    """
    logits = log_scale.exp() * pictures.float() @ texts.float().mT + bias  # (B, B + N)
    own = torch.eye(*logits.shape, dtype=torch.bool, device=logits.device)
    losses = -F.logsigmoid(torch.where(own, logits, -logits))
    return losses.masked_fill(same & ~own, 0).sum() / len(logits)


def distilling(students: Tensor, teachers: Tensor, *, temperature: float = 0.05) -> Tensor:
    """Each student vector (B, E) shall be its teacher's (B, E): by direction, and told apart from the others in the
    batch (InfoNCE, 1807.03748), which keeps small differences of meaning."""
    students = F.normalize(students.float(), dim=-1)
    here = torch.arange(len(students), device=students.device)
    alike = teachers @ teachers.mT > 0.95  # two spellings of one thing
    alike.fill_diagonal_(False)
    logits = (students @ teachers.mT / temperature).masked_fill(alike, -torch.inf)
    direction = 1 - (students * teachers).sum(-1).mean()
    return direction + 0.5 * F.cross_entropy(logits, here)


def denoising(
    network: Callable[[Tensor, Tensor], Tensor],
    latent: Tensor,
    bar: Tensor,
    prediction: Prediction,
    generator: torch.Generator,
    *,
    tilt: float = 1.0,
) -> Tensor:
    """DDPM (2006.11239), algorithm 1, for epsilon or v (2202.00512, eq. in section 4): the mean squared error at random
    times, one from each B-th of the schedule, so that the loss of a batch depends little on the times it drew.

    latent (B, C, y, x); `bar` (N,) is alpha squared at each training step; network(noisy, time (B,)). Times are
    u ** tilt of a uniform u: a tilt above 1 gives more steps with low noise. Small latents need them, since the same
    noise hides more of a small picture (2301.11093, section 3.1).
    """
    B, N = len(latent), len(bar)
    spread = torch.rand(B, generator=generator, device=latent.device)
    time = (((torch.arange(B, device=latent.device) + spread) / B) ** tilt * N).long().clamp(max=N - 1)
    alpha = bar[time].sqrt().float()[:, None, None, None]
    sigma = (1 - bar[time]).sqrt().float()[:, None, None, None]
    noise = torch.randn(latent.shape, generator=generator, device=latent.device)
    target = noise if prediction == "epsilon" else alpha * noise - sigma * latent
    return F.mse_loss(network(alpha * latent + sigma * noise, time).float(), target)
