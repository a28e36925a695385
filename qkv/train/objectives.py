"""What each model is trained to do: functions from a model and a batch to a `Loss`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from qkv.models.vae import VAE
from qkv.train.loop import Loss


def autoencoding(vae: VAE, pictures: Tensor, generator: torch.Generator, *, kl: float = 1e-3) -> Loss:
    """Latent diffusion (2112.10752), eq. 25, with an L1 distance of the pictures and of their edges in place of the
    perceptual and adversarial losses: both need networks of their own, and flat drawings are mostly edges.

    pictures (B, 3, Y, X) in [-1, 1]; `kl` weighs the mean over the latent's numbers.
    """
    mean, log_variance = vae.distribution(pictures)
    mean, log_variance = mean.float(), log_variance.float()
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    latent = mean + torch.exp(0.5 * log_variance) * noise
    drawn = vae.decode((latent - vae.config.shift) * vae.config.scaling).float()
    pixel = F.l1_loss(drawn, pictures)
    edge = F.l1_loss(drawn.diff(dim=-1), pictures.diff(dim=-1)) + F.l1_loss(drawn.diff(dim=-2), pictures.diff(dim=-2))
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return Loss(
        pixel + edge + kl * divergence, {"pixel": pixel.detach(), "edge": edge.detach(), "kl": divergence.detach()}
    )
