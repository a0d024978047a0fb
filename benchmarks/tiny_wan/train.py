"""Train the built-in tiny Wan: one base model, then both experts from it, each on its side of the boundary.

    python benchmarks/tiny_wan/train.py --out RUN --base-minutes 54 --expert-minutes 36

Steps follow a wall-clock budget: the learning rate is a cosine of elapsed time, so that a slow machine ends its
schedule too, with fewer steps. RUN holds `train.log` and one checkpoint per phase; `export.py` writes the package
folder.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from shapes import SLOTS, draw_clips, random_labels
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

BOUNDARY = 0.875
SHIFT = 3.0
TEXT_DIM = 64
CONFIG: dict[str, Any] = {
    "patch_size": (1, 4, 4),
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "in_channels": 3,
    "out_channels": 3,
    "text_dim": TEXT_DIM,
    "freq_dim": 256,
    "ffn_dim": 512,
    "num_layers": 8,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
}


class TextTables(nn.Module):
    """One learnt table per slot, [1 + words, text_dim]; row 0 stands for "not said"."""

    def __init__(self, text_dim: int) -> None:
        super().__init__()
        self.tables = nn.ParameterDict(
            {slot: nn.Parameter(torch.randn(1 + len(words), text_dim)) for slot, words in SLOTS.items()}
        )

    def forward(self, rows: Tensor) -> Tensor:
        """int64 [B, 4] (0 = null) -> float [B, 4, text_dim]."""
        return torch.stack([self.tables[slot][rows[:, i]] for i, slot in enumerate(SLOTS)], dim=1)


class PlainAttention:
    """Wan's attention written as matrix products; the same function as diffusers' processor.

    On a CPU the backward pass of the flash kernel is slow for BF16 heads of 32 channels: with this, a step of 12 clips
    went from 0.90 to 0.50 seconds. Used in training only.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        def norm(x: Tensor, weight: Tensor) -> Tensor:
            x = x.float()
            x = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + float(CONFIG["eps"])) * weight
            parted: Tensor = x.unflatten(2, (heads, -1))
            return parted

        def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
            return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)

        heads: int = attn.heads
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q = norm(attn.to_q(hidden_states), attn.norm_q.weight)
        k = norm(attn.to_k(context), attn.norm_k.weight)
        v = attn.to_v(context).unflatten(2, (heads, -1))
        if rotary_emb is not None:
            cos, sin = rotary_emb[0][..., 0::2].float(), rotary_emb[1][..., 1::2].float()
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        q, k, v = (x.to(torch.bfloat16).transpose(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
        weights = (q @ k.transpose(-1, -2)).softmax(-1).to(torch.bfloat16)
        out: Tensor = attn.to_out[0]((weights @ v).transpose(1, 2).flatten(2))
        return out


class Model(nn.Module):
    """What is trained together: the transformer and the text tables."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = WanTransformer3DModel(**CONFIG)
        self.transformer.set_attn_processor(PlainAttention())
        self.text = TextTables(TEXT_DIM)

    def forward(self, noisy: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:
        flow: Tensor = self.transformer(noisy, sigma * 1000.0, self.text(rows), return_dict=False)[0]
        return flow


def sample_sigma(count: int, phase: str, generator: torch.Generator) -> Tensor:
    """Shifted noise levels, stratified over the batch (less variance per step), restricted to the phase's side."""
    edge = BOUNDARY / (SHIFT - (SHIFT - 1) * BOUNDARY)  # the boundary in unshifted time
    low, high = {"base": (0.0, 1.0), "high_noise": (edge, 1.0), "low_noise": (0.0, edge)}[phase]
    u = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    u = low + (high - low) * u
    return SHIFT * u / (1 + (SHIFT - 1) * u)


def drop_words(labels: Tensor, drop_all: float, drop_one: float, generator: torch.Generator) -> Tensor:
    """Rows of the text tables: the label + 1, or 0 where the whole prompt or the single word is dropped."""
    count = labels.shape[0]
    keep_all = torch.rand(count, 1, generator=generator) >= drop_all
    keep_one = torch.rand(labels.shape, generator=generator) >= drop_one
    return (labels + 1) * keep_all * keep_one


def anchor_frames(share: float, sigma: Tensor, frames: int, generator: torch.Generator) -> Tensor:
    """Noise level of every frame [B, frames]: sigma, except that a `share` of the clips has one nearly clean frame.

    Which way a shape moves along its axis shows in the loss only once attention is odd in time and odd in space and
    turns with the word: three things that are useless one by one, and training stays there. Beside a clean frame each
    of them pays at once, and what was learnt so still holds when the anchors are gone.
    """
    levels = sigma[:, None].repeat(1, frames)
    chosen = torch.rand(len(sigma), generator=generator) < share
    # A middle frame: near an edge, the room that is left gives the direction away and the word is not needed.
    frame = torch.randint(frames // 2 - 1, frames // 2 + 2, (len(sigma),), generator=generator)
    levels[chosen, frame[chosen]] *= 0.2
    return levels


def make_batch(
    count: int, phase: str, drop: tuple[float, float], anchored: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Noisy clips [B, 3, 9, 24, 24], their sigma [B], rows of the text tables [B, 4], the flow to predict, and the
    weight of every frame in the loss [B, 1, 9, 1, 1]: an anchor counts nothing."""
    labels = random_labels(count, generator)
    clips = draw_clips(labels, generator)
    noise = torch.randn(clips.shape, generator=generator)
    sigma = sample_sigma(count, phase, generator)
    levels = anchor_frames(anchored, sigma, clips.shape[2], generator)
    s = levels[:, None, :, None, None]
    weight = (levels == sigma[:, None]).float()[:, None, :, None, None]
    return (1 - s) * clips + s * noise, sigma, drop_words(labels, *drop, generator), noise - clips, weight


def make_optimizers(model: Model, lr: float, muon_factor: float, train_text: bool) -> list[torch.optim.Optimizer]:
    parameters = [(n, p) for n, p in model.named_parameters() if train_text or not n.startswith("text.")]
    for name, p in model.named_parameters():
        if name.startswith("text."):
            p.requires_grad_(train_text)
    muon = [p for n, p in parameters if p.ndim == 2 and ".blocks." in n]
    chosen = {id(p) for p in muon}
    rest = [p for _, p in parameters if id(p) not in chosen]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    ]
    found.append(torch.optim.Muon(muon, lr=lr * muon_factor, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    return found


def average_over_workers(parameters: list[Tensor], *values: float) -> list[float]:
    """Average the gradients in place, and `values`, over all workers: one message."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients] + [torch.tensor(values)])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    pieces = flat[: -len(values)].split([g.numel() for g in gradients])
    torch._foreach_copy_(gradients, [piece.view_as(g) for piece, g in zip(pieces, gradients, strict=True)])
    return [float(v) for v in flat[-len(values) :]]


def run_phase(model: Model, phase: str, minutes: float, lr: float, args: argparse.Namespace) -> None:
    """Train for `minutes` and leave the moving average of the weights in `RUN/<phase>.safetensors`."""
    rank = dist.get_rank()
    batch = args.batch if phase == "base" else args.expert_batch
    seed = args.seed + {"base": 0, "high_noise": 1, "low_noise": 2}[phase] + 1000 * rank
    generator = torch.Generator().manual_seed(seed)
    # The text tables are shared by both experts, so they stay as the base phase left them.
    optimizers = make_optimizers(model, lr, args.muon_factor, train_text=phase == "base")
    initial = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    average = Model()
    average.load_state_dict(model.state_dict())
    source: list[Tensor] = list(model.parameters())
    target: list[Tensor] = list(average.parameters())
    start = saved = time.monotonic()
    seconds = total = 0.0
    step = 0
    while seconds < minutes * 60:
        step += 1
        progress = seconds / (minutes * 60)
        schedule = min(1.0, step / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, rate in zip(groups, initial, strict=True):
            group["lr"] = rate * schedule
        anchored = args.anchored * max(0.0, 1 - 2 * progress) if phase == "high_noise" else 0.0
        noisy, sigma, rows, wanted, weight = make_batch(
            batch, phase, (args.drop_all, args.drop_one), anchored, generator
        )
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            predicted = model(noisy, sigma, rows)
        loss = ((predicted.float() - wanted).square() * weight).mean()
        loss.backward()
        # The clock is averaged too: every worker has to see the same schedule and to stop at the same step.
        mean_loss, seconds = average_over_workers(source, loss.item(), time.monotonic() - start)
        nn.utils.clip_grad_norm_(source, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(target, source, 1 - min(args.ema, (1 + step) / (10 + step)))
        total += mean_loss
        if rank > 0:
            continue
        if step % 50 == 0:
            note(args, f"{phase} step {step} loss {total / 50:.5f} lr {lr * schedule:.2e} seconds {seconds:.0f}")
            total = 0.0
        if time.monotonic() - saved > args.save_seconds:
            save(average, args.out / f"{phase}.safetensors")
            saved = time.monotonic()
    if rank == 0:
        save(average, args.out / f"{phase}.safetensors")
        note(args, f"{phase} done steps {step} seconds {seconds:.0f}")
    dist.barrier()


def note(args: argparse.Namespace, line: str) -> None:
    with (args.out / "train.log").open("a") as log:
        log.write(line + "\n")


def save(model: Model, path: Path) -> None:
    partial = path.with_suffix(".partial")
    save_file({name: p.detach().contiguous() for name, p in model.state_dict().items()}, partial)
    partial.replace(path)


def load(path: Path) -> Model:
    model = Model()
    model.load_state_dict(load_file(path))
    return model


def join_group(args: argparse.Namespace, name: str, rank: int, size: int) -> None:
    torch.set_num_threads(1)
    rendezvous = (args.out / f"rendezvous-{name}").absolute()
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
    torch.manual_seed(args.seed)


def train_base(rank: int, args: argparse.Namespace) -> None:
    """One of `workers` processes that average their gradients: faster here than one process with as many threads."""
    join_group(args, "base", rank, args.workers)
    run_phase(Model(), "base", args.base_minutes, args.lr, args)
    dist.destroy_process_group()


def train_expert(index: int, args: argparse.Namespace) -> None:
    """The experts share nothing but their start, so each has processes of its own and waits for nobody else."""
    phase = args.experts.split(",")[index // args.expert_workers]
    join_group(args, phase, index % args.expert_workers, args.expert_workers)
    trained = args.out / f"{phase}.safetensors"
    start = trained if args.resume and trained.exists() else args.out / "base.safetensors"
    run_phase(load(start), phase, args.expert_minutes, args.expert_lr, args)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--phases", default="base,experts")
    parser.add_argument("--experts", default="high_noise,low_noise")
    parser.add_argument("--resume", action="store_true", help="go on from the experts in RUN instead of its base")
    parser.add_argument("--base-minutes", type=float, default=54.0)
    parser.add_argument("--expert-minutes", type=float, default=36.0)
    parser.add_argument("--batch", type=int, default=8, help="clips per worker and step")
    parser.add_argument("--expert-workers", type=int, default=1)
    parser.add_argument("--expert-batch", type=int, default=12)
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--drop-all", type=float, default=0.10, help="share of prompts dropped, for guidance")
    parser.add_argument("--drop-one", type=float, default=0.03, help="share of single words dropped")
    parser.add_argument(
        "--anchored", type=float, default=0.0, help="share of anchored clips, falling to 0 at half time"
    )
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--expert-lr", type=float, default=1.5e-3)
    parser.add_argument("--muon-factor", type=float, default=4.0, help="Muon's learning rate over AdamW's")
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-seconds", type=float, default=180.0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    phases = args.phases.split(",")
    for phase in ("base", *args.experts.split(",")):
        (args.out / f"rendezvous-{phase}").unlink(missing_ok=True)
    if "base" in phases:
        spawn(train_base, args=(args,), nprocs=args.workers)
    if "experts" in phases:
        count = len(args.experts.split(",")) * args.expert_workers
        spawn(train_expert, args=(args,), nprocs=count)


if __name__ == "__main__":
    main()
