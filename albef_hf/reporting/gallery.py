"""The gallery of a retrieval report: queries with their first answers, right and wrong."""

import random
from html import escape

import numpy as np

from ..data.images import decode_image
from ..data.retrieval import RetrievalData
from ..evaluation.recall import NO_RIGHT_ANSWER
from ..evaluation.retrieval import RetrievalResult
from .html import shown_text, thousands, thumbnail, verdict, verdict_mark

QUERIES_SHOWN = 12
ANSWERS_SHOWN = 5
GALLERY_SEED = 0


def gallery_section(result: RetrievalResult, data: RetrievalData) -> str:
    """A section with queries that are drawn by a fixed seed, whatever their outcome."""
    draw = random.Random(GALLERY_SEED)
    image_queries = sorted(draw.sample(range(result.images), min(QUERIES_SHOWN, result.images)))
    text_queries = sorted(draw.sample(range(result.texts), min(QUERIES_SHOWN, result.texts)))
    pictures = _Thumbnails(data)
    by_image = [_image_query(image, result, data, pictures) for image in image_queries]
    by_text = [_text_query(text, result, data, pictures) for text in text_queries]
    order = f"after re-ranking the top {result.k}" if result.k > 0 else "by contrastive score"
    return (
        f"<section>\n<h2>Gallery</h2>\n<p>The first {ANSWERS_SHOWN} answers {order}, best first. The queries were "
        f"drawn at random with a fixed seed, not chosen by their outcome. <b>✓</b> and a full border mark a right "
        "answer, <b>✗</b> and a dotted border a wrong one.</p>\n"
        f'<h3>Image → text</h3>\n<div class="gallery">{"".join(by_image)}</div>\n'
        f'<h3>Text → image</h3>\n<div class="gallery">{"".join(by_text)}</div>\n</section>'
    )


def _image_query(image: int, result: RetrievalResult, data: RetrievalData, pictures: "_Thumbnails") -> str:
    items = []
    for text in result.image_to_text[image, :ANSWERS_SHOWN]:
        right = data.text_groups[text] == data.image_groups[image]
        items.append(
            f'<li class="{verdict(right)}">{verdict_mark(right)}<span>{shown_text(data.texts[text])}</span></li>'
        )
    return (
        f'<article class="query by-image">{pictures.tag(image, f"query image {image}")}'
        f"<ol>{''.join(items)}</ol>{_rank_line(result.image_ranks, image, result.texts)}</article>"
    )


def _text_query(text: int, result: RetrievalResult, data: RetrievalData, pictures: "_Thumbnails") -> str:
    figures = []
    for image in result.text_to_image[text, :ANSWERS_SHOWN]:
        right = data.text_groups[text] == data.image_groups[image]
        figures.append(
            f'<figure class="{verdict(right)}">{pictures.tag(int(image), f"image {image}")}'
            f"<figcaption>{verdict_mark(right)}</figcaption></figure>"
        )
    return (
        f'<article class="query"><blockquote>{shown_text(data.texts[text])}</blockquote>'
        f'<div class="row">{"".join(figures)}</div>{_rank_line(result.text_ranks, text, result.images)}</article>'
    )


class _Thumbnails:
    """Small copies of the evaluated images, each made once."""

    def __init__(self, data: RetrievalData) -> None:
        self.images = data.images
        self.addresses: dict[int, str] = {}

    def tag(self, row: int, description: str) -> str:
        if row not in self.addresses:
            self.addresses[row] = thumbnail(decode_image(self.images[row]["image"]))
        return f'<img class="picture" alt="{escape(description)}" src="{self.addresses[row]}">'


def _rank_line(ranks: np.ndarray, query: int, candidates: int) -> str:
    if ranks[query] == NO_RIGHT_ANSWER:
        return '<p class="place">no right answer among the candidates</p>'
    place = thousands(ranks[query] + 1)
    return f'<p class="place">first right answer in place {place} of {thousands(candidates)}</p>'
