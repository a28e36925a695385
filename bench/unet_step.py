"""One step of Stable Diffusion 1.5's U-Net with guidance at 512 x 512, ours and diffusers', and where ours goes.

    python bench/unet_step.py [--json]

A batch of 2 latents of 64 x 64, 77 tokens, random weights: 1.354 TFLOP. No claim, only where we stand. `packed` is
how `qkv draw` computes on a CPU with bfloat16. Takes about 5 minutes and 8 GB on two idle cores.
"""

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from measure import machine, prepare, ratios, report, spread, table, take_turns, timed, worker

CASES = {  # precision and layout: who takes turns
    "float32": ("qkv", "diffusers"),
    "bfloat16": ("qkv", "diffusers"),
    "bfloat16 channels-last": ("qkv", "qkv packed", "diffusers"),
}
OPERATIONS = {
    "attention": ("attend",),
    "convolutions": ("aten::conv2d", "mkldnn::_convolution_pointwise"),
    "linears": ("aten::linear", "mkldnn::_linear_pointwise"),
}


# In the workers' processes.

_step: Callable[[], Any]


def open_unet(name: str, case: str, threads: int, dims: tuple[int, ...], latent: int) -> None:
    """Builds the network of `name`, with no weights until they are filled."""
    global _step
    import torch

    torch.set_num_threads(threads)
    with torch.device("meta"):
        unet = _diffusers(dims) if name == "diffusers" else _ours(dims)
    unet = unet.to(getattr(torch, case.split()[0])).to_empty(device="cpu").eval()
    noise = torch.randn(1 << 16) * 0.02  # normal numbers for every weight would take longer than the steps
    for parameter in unet.parameters():
        repeats = -(-parameter.numel() // len(noise))
        parameter.data.copy_(noise.repeat(repeats)[: parameter.numel()].view(parameter.shape))
    if "channels-last" in case:
        unet.to(memory_format=torch.channels_last)
    if name == "qkv packed":
        from qkv.models.packed import pack

        pack(unet)
    dtype = next(unet.parameters()).dtype
    x, memory = torch.randn(2, 4, latent, latent).to(dtype), torch.randn(2, 77, 768).to(dtype)
    if "channels-last" in case:
        x = x.contiguous(memory_format=torch.channels_last)
    time = torch.full((2,), 500.0)

    @torch.inference_mode()
    def step() -> object:
        return unet(x, time, memory)

    _step = step


def _ours(dims: tuple[int, ...]) -> Any:
    from qkv.models.unet import UNet, UNetConfig

    return UNet(UNetConfig(dims=dims))


def _diffusers(dims: tuple[int, ...]) -> Any:
    from diffusers import UNet2DConditionModel

    # The defaults but for the text's width are SD 1.5's.
    return UNet2DConditionModel(block_out_channels=dims, cross_attention_dim=768)


def seconds() -> float:
    return timed(_step)


def profile() -> dict[str, float]:
    """The share of one step, in percent, that each kind of operation takes."""
    from torch.profiler import ProfilerActivity, record_function
    from torch.profiler import profile as recording

    from qkv.core import attention

    plain = attention.attend

    def attend(*given: Any, **options: Any) -> Any:
        with record_function("attend"):
            return plain(*given, **options)

    attention.attend = attend
    try:
        with recording(activities=[ProfilerActivity.CPU]) as found, record_function("step"):
            _step()
    finally:
        attention.attend = plain
    total = {event.key: event.cpu_time_total for event in found.key_averages()}
    shares = {
        kind: 100 * sum(total.get(name, 0) for name in names) / total["step"] for kind, names in OPERATIONS.items()
    }
    return shares | {"rest": 100 - sum(shares.values())}


# Here.


def run(case: str, threads: int, dims: tuple[int, ...], latent: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Every peer's seconds, and our profiles."""
    with ExitStack() as stack:
        pools = {name: stack.enter_context(worker()) for name in CASES[case]}
        for name, pool in pools.items():
            pool.submit(open_unet, name, case, threads, dims, latent).result()
        turns = {name: lambda pool=pool: pool.submit(seconds).result() for name, pool in pools.items()}
        found = take_turns(turns, rounds)
        ours = {name: pool.submit(profile).result() for name, pool in pools.items() if name != "diffusers"}
    return {"seconds": found, "percent": ours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each peer")
    parser.add_argument("--dims", default="320,640,1280,1280", help="the four widths; multiples of 32")
    parser.add_argument("--latent", type=int, default=64, help="the latent's side")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    dims = tuple(map(int, asked.dims.split(",")))

    prepare(asked.threads)
    results: dict[str, Any] = {"machine": machine(asked.threads, "qkv", "torch", "diffusers")}
    rows: list[list[object]] = []
    for case in CASES:
        results[case] = run(case, asked.threads, dims, asked.latent, asked.rounds)
        found = results[case]["seconds"]
        for name, shares in results[case]["percent"].items():
            gain = ratios(found["diffusers"], found[name])
            percent = [f"{share:.0f} %" for share in shares.values()]
            rows.append([case, name, spread(found[name]), spread(found["diffusers"]), f"{gain} x", *percent])
    head = ["precision", "ours", "ours: s", "diffusers: s", "better by", *OPERATIONS, "rest"]
    report(results, [table(head, rows)], as_json=asked.json)


if __name__ == "__main__":
    main()
