"""Cost of re-ranking, beside scoring every pair by itself: CPU time and floating point operations.

python scripts/benchmark_reranking.py --images 6 --k 64 --image_tokens 577

The fusion layers are those of the base configuration. Weights and token states are random; the lengths of texts are
drawn around those of COCO captions. Each image is matched with k texts in three ways, which take turns:

published   image tokens are repeated and projected for every pair, and texts are padded to --max_length
trimmed     the same, but texts are padded to the longest of the k only
ours        `albef_hf.evaluation.retrieval_ranking.match_shortlists`, as in an evaluation
"""

import sys

sys.path.sort(key=lambda folder: folder.endswith("scripts"))  # last: `import evaluate` means the library

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from albef_hf.configuration_albef import AlbefTextConfig
from albef_hf.evaluation.retrieval_ranking import length_batches, match_shortlists
from albef_hf.modeling_albef_text import AlbefTextModel


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6, help="images to measure")
    parser.add_argument("--k", type=int, default=64, help="texts that each image is matched with")
    parser.add_argument(
        "--image_tokens", type=int, default=577, help="tokens of an image; 577: 384 pixels in patches of 16"
    )
    parser.add_argument(
        "--max_length", type=int, default=30, help="tokens that the published evaluation pads texts to"
    )
    parser.add_argument("--mean_length", type=float, default=12.5, help="average tokens of a text, [CLS] included")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, states and lengths")
    arguments = parser.parse_args()
    for name in ("images", "k", "image_tokens", "threads"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} {getattr(arguments, name)}: at least 1")
    if arguments.max_length < 5 or not arguments.mean_length >= 5:
        parser.error("--max_length and --mean_length: at least 5, the length of the shortest texts")
    return arguments


class Fusion(nn.Module):
    """The fusion encoder and the matching head, as `match_shortlists` calls them."""

    def __init__(self) -> None:
        super().__init__()
        config = AlbefTextConfig(encoder_hidden_size=768)
        self.text_model = AlbefTextModel(config)
        self.itm_head = nn.Linear(config.hidden_size, 2)

    def project_image_tokens(self, tokens: torch.Tensor) -> Any:
        return self.text_model.project_image_tokens(tokens)

    def matching_logits(self, states: torch.Tensor, mask: torch.Tensor, keys_values: Any) -> torch.Tensor:
        return self.itm_head(self.text_model.fuse(states, mask, keys_values, queries=1)[:, 0])

    def pairwise(self, tokens: torch.Tensor, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Score every pair by itself, as in the published evaluation."""
        keys_values = self.project_image_tokens(tokens.expand(len(states), -1, -1))
        return self.itm_head(self.text_model.fuse(states, mask, keys_values)[:, 0])


class Texts:
    """The texts as `match_shortlists` needs them."""

    def __init__(self, states: torch.Tensor, lengths: torch.Tensor) -> None:
        self.kept, self.lengths, self.device = states, lengths, states.device
        self.attention_mask = (torch.arange(states.shape[1]) < lengths[:, None]).long()

    def states(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        longest = int(self.lengths[rows].max())
        return self.kept[rows, :longest], self.attention_mask[rows, :longest]


class Images:
    """One image, as `match_shortlists` needs it."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self.rows, self.states, self.features = range(1), tokens, tokens.new_zeros(1, 1)

    def tokens(self) -> Any:
        yield 0, self.states


def operations(build: Callable[[], Any]) -> int:
    """Floating point operations, counted on the meta device, where nothing is computed."""
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        build()
    return counter.get_total_flops()


def count(arguments: argparse.Namespace, lengths: torch.Tensor) -> dict[str, int]:
    """Floating point operations of one image with its k texts, in each of the three ways."""
    with torch.device("meta"):
        fusion = Fusion().eval()

    def pair(size: int, length: int) -> Any:
        tokens = torch.empty(1, arguments.image_tokens, 768)
        return fusion.pairwise(tokens, torch.empty(size, length, 768), torch.ones(size, length))

    def ours() -> None:
        keys_values = fusion.project_image_tokens(torch.empty(1, arguments.image_tokens, 768))
        ordered = lengths.sort().values
        for batch in length_batches(ordered):
            size, length = len(ordered[batch]), int(ordered[batch].max())
            shared = [(k.expand(size, -1, -1, -1), v.expand(size, -1, -1, -1)) for k, v in keys_values]
            fusion.matching_logits(torch.empty(size, length, 768), torch.ones(size, length), shared)

    return {
        "published": operations(lambda: pair(arguments.k, arguments.max_length)),
        "trimmed": operations(lambda: pair(arguments.k, int(lengths.max()))),
        "ours": operations(ours),
    }


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(arguments.seed)
    torch.manual_seed(arguments.seed)
    fusion = Fusion().eval()
    seconds = dict.fromkeys(("published", "trimmed", "ours"), 0.0)
    flops = dict.fromkeys(seconds, 0)
    largest = 0.0

    def timed(name: str, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        start = time.process_time()
        result = work()
        seconds[name] += time.process_time() - start
        return result

    with torch.inference_mode():
        for _ in range(arguments.images):
            tokens = torch.randn(1, arguments.image_tokens, 768, generator=generator)
            states = torch.randn(arguments.k, arguments.max_length, 768, generator=generator)
            drawn = arguments.mean_length + 2.5 * torch.randn(arguments.k, generator=generator)
            texts = Texts(states, drawn.round().clamp(5, arguments.max_length).long())
            every = torch.arange(arguments.k)
            shortlists = every[None], torch.empty(0, 1, dtype=torch.int64)
            scores = {
                "ours": timed("ours", lambda: match_shortlists(fusion, Images(tokens), texts, *shortlists)[0][0]),  # type: ignore[arg-type] # noqa: B023
                "published": timed("published", lambda: fusion.pairwise(tokens, states, texts.attention_mask)[:, 1]),  # noqa: B023
                "trimmed": timed("trimmed", lambda: fusion.pairwise(tokens, *texts.states(every))[:, 1]),  # noqa: B023
            }
            largest = max(largest, *(float((scores["ours"] - each).abs().max()) for each in scores.values()))
            for name, value in count(arguments, texts.lengths).items():
                flops[name] += value
    pairs = arguments.images * arguments.k
    print(f"{arguments.images} images x {arguments.k} texts, {arguments.image_tokens} image tokens:")
    for name, spent in seconds.items():
        print(
            f"{name:10} {1000 * spent / pairs:8.2f} ms of CPU a pair ({spent / seconds['ours']:5.2f} x ours)   "
            f"{flops[name] / pairs / 1e9:8.2f} GF a pair ({flops[name] / flops['ours']:5.2f} x ours)"
        )
    print(f"largest difference of a matching logit: {largest:.1e}")


if __name__ == "__main__":
    main()
