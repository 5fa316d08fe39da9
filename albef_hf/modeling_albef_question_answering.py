"""ALBEF answering questions about images (Li et al. 2021, https://arxiv.org/abs/2107.07651, section 5, "VQA").

Text encoder and fusion encoder read the question with the image; a causal decoder attends to their states and writes
the answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_albef import AlbefConfig
from .losses import IGNORED, accuracy, answer_losses, check_pairs, distills
from .modeling_albef import AlbefModel
from .modeling_albef_attention import KeysValues, asked_outputs, recording
from .modeling_albef_decoder import AlbefAnswerDecoder
from .modeling_albef_momentum import AlbefMomentumModel, check_images_per_text
from .modeling_albef_text import AlbefTextModel
from .momentum import MomentumCopy


@dataclass
class AlbefForQuestionAnsweringOutput(ModelOutput):
    """The output for B questions of T tokens with A answers in total, each of L tokens.

    Args:
        loss: sum over answers of weight * loss of the answer, divided by B; None without answers.
        loss_per_token: mean over answer tokens of the cross-entropy with the token, unweighted and without gradient.
        answer_logits: (A, L - 1, vocabulary): position i predicts token i + 1.
        answer_labels: (A, L - 1); -100 where padded.
        question_states: (B, T, hidden_size), which the decoder attends to.
        hidden_states, attentions, cross_attentions: of the question, layer by layer, where asked for.
    """

    loss: torch.Tensor | None = None
    loss_per_token: torch.Tensor | None = None
    answer_logits: torch.Tensor | None = None
    answer_labels: torch.Tensor | None = None
    question_states: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class AlbefAnswerRanking(ModelOutput):
    """The k best candidate answers to each of B questions, best first.

    Args:
        answer_ids: (B, k), rows of the candidates.
        probabilities: (B, k), softmax of the scores over the k.
        log_probabilities: (B, k), log-probability of the whole answer.
    """

    answer_ids: torch.Tensor | None = None
    probabilities: torch.Tensor | None = None
    log_probabilities: torch.Tensor | None = None


class AlbefForQuestionAnswering(AlbefMomentumModel, GenerationMixin):
    """Answers questions about images: by ranking a list of answers (`rank_answers`), or in free text (`generate`).

    Loaded from a pre-training checkpoint, the decoder starts as a copy of the fusion layers, the embeddings and the
    vocabulary head, as published.
    """

    _supports_flash_attn = False
    starts = {
        r"^decoder\.(embeddings|encoder)\.": "copied from the embeddings and fusion layers where of equal shape",
    }

    def __init__(self, config: AlbefConfig) -> None:
        check_images_per_text(config)
        super().__init__(config)
        self.albef = AlbefModel(config, contrastive=False)
        self.decoder = AlbefAnswerDecoder(config.text_config)  # type: ignore[arg-type]
        self.momentum_copy = MomentumCopy(self.online_modules())
        self.generation_config = self.decoder.generation_config  # not of `config`, whose temperature is another one
        self.generation_config._from_model_config = False
        self.post_init()

    def adjust_generation_fn(self, *args: Any, **kwargs: Any) -> None:
        """Load the generation configuration of a folder, if it has one."""
        super().adjust_generation_fn(*args, **kwargs)  # type: ignore[misc]
        if self.generation_config._from_model_config:
            self.generation_config = self.decoder.generation_config

    @classmethod
    def renamed_keys(cls, checkpoint_config: AlbefConfig | None) -> dict[str, str]:
        """The vocabulary head of pre-training becomes the decoder's, in the momentum copies too."""
        return {r"^cls\.": "decoder.cls.", r"^momentum_copy\.cls\.": "momentum_copy.decoder.cls."}

    def online_modules(self) -> dict[str, nn.Module]:
        """The modules with momentum copies: all of them (published code)."""
        return {
            "vision_model": self.albef.vision_model,
            "text_model": self.albef.text_model,
            "decoder": self.decoder,
        }

    def start_new_parts(self) -> None:
        """See `AlbefMomentumModel.start_new_parts`."""
        self.decoder.start(self.albef.text_model)

    def chance_losses(self, batch_size: int) -> dict[str, float]:
        """See `Trainable.chance_losses`."""
        return {"loss_per_token": torch.tensor(float(self.config.text_config.vocab_size)).log().item()}

    def metrics(self, output: AlbefForQuestionAnsweringOutput) -> dict[str, torch.Tensor]:
        """See `Trainable.metrics`."""
        return {"token_accuracy": accuracy(output.answer_logits, output.answer_labels)}  # type: ignore[arg-type]

    def encode_question(
        self, input_ids: torch.Tensor, pixel_values: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Questions (B, T) with their images -> states (B, T, hidden_size), which the decoder attends to."""
        check_pairs(pixel_values, input_ids)
        return self._encode(self.albef.vision_model, self.albef.text_model, input_ids, pixel_values, attention_mask)

    @staticmethod
    def _encode(
        vision_model: nn.Module,
        text_model: AlbefTextModel,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        image_keys_values = text_model.project_image_tokens(vision_model(pixel_values).tokens)
        return text_model.fuse(text_model.encode_text(input_ids, attention_mask), attention_mask, image_keys_values)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        answer_input_ids: torch.Tensor | None = None,
        answer_attention_mask: torch.Tensor | None = None,
        answer_weights: torch.Tensor | None = None,
        answers_per_question: torch.Tensor | None = None,
        alpha: float | None = None,
        **kwargs: Any,
    ) -> AlbefForQuestionAnsweringOutput:
        """The loss of A weighted answers to B questions, or the states of the questions where no answers are given.

        Args:
            input_ids, attention_mask: (B, T), questions.
            pixel_values: (B, channels, height, width), the image of each.
            answer_input_ids, answer_attention_mask: (A, L), answers from [CLS] to [SEP], padded on the right; first
                all answers to the first question, then those to the second, and so on.
            answer_weights: (A,); published: the share of people who gave the answer.
            answers_per_question: (B,) integers that add up to A; 1 for each question where left out.
            alpha: weight of the soft targets; `config.alpha` where left out.

        Raises:
            ValueError: different numbers of images and questions, answers without weights, or `answers_per_question`
                that do not add up to A.
        """
        with recording(self.albef.text_model.encoder.layer, asked_outputs(self.config, kwargs)) as record:
            question_states = self.encode_question(input_ids, pixel_values, attention_mask)
        if answer_input_ids is None:
            return AlbefForQuestionAnsweringOutput(question_states=question_states, **record)
        alpha = self.config.alpha if alpha is None else alpha
        questions, answers = input_ids.shape[0], answer_input_ids.shape[0]
        _check_answers(questions, answer_input_ids, answer_weights, answers_per_question)
        if answer_attention_mask is None:
            answer_attention_mask = torch.ones_like(answer_input_ids)
        owner = torch.arange(questions, device=input_ids.device)
        if answers_per_question is not None:  # (A,) the question of each answer
            owner = owner.repeat_interleave(answers_per_question, output_size=answers)
        labels = answer_input_ids.masked_fill(answer_attention_mask == 0, IGNORED)[:, 1:]

        def answer_logits(decoder: AlbefAnswerDecoder, states: torch.Tensor) -> torch.Tensor:
            memory = [(key[owner], value[owner]) for key, value in decoder.project_question(states)]
            mask = None if attention_mask is None else attention_mask[owner]
            # The last token predicts nothing and no other one sees it: leave it out.
            decoded = decoder.decode(answer_input_ids[:, :-1], answer_attention_mask[:, :-1], memory, mask)
            return decoder.predict(decoded)

        logits = answer_logits(self.decoder, question_states)
        teacher_logits = None
        if distills(alpha):
            with torch.no_grad():
                copies: Any = self.momentum_copy
                states = self._encode(copies.vision_model, copies.text_model, input_ids, pixel_values, attention_mask)
                teacher_logits = answer_logits(copies.decoder, states)
        losses = answer_losses(logits, labels, teacher_logits, alpha)
        with torch.no_grad():
            plain = losses if teacher_logits is None else answer_losses(logits, labels)
            per_token = plain.sum() / (labels != IGNORED).sum().clamp(min=1)
        return AlbefForQuestionAnsweringOutput(
            loss=(answer_weights.to(losses.dtype) * losses).sum() / questions,  # type: ignore[union-attr]
            loss_per_token=per_token,
            answer_logits=logits,
            answer_labels=labels,
            question_states=question_states,
            **record,
        )

    @torch.no_grad()
    def rank_answers(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        candidate_input_ids: torch.Tensor,
        candidate_attention_mask: torch.Tensor | None = None,
        k: int = 128,
        batch_size: int = 1024,
    ) -> AlbefAnswerRanking:
        """Rank C candidate answers for each of B questions (section 5; published code).

        The k candidates with the most probable first tokens are kept and ranked by their log-probability. The
        published code counts the first token twice, and so does this method with `config.published_defects`.

        Args:
            input_ids, attention_mask, pixel_values: as in `forward`.
            candidate_input_ids, candidate_attention_mask: (C, L), answers from [CLS] to [SEP], padded on the right.
            k: candidates scored in full for each question; all of them where C is smaller.
            batch_size: pairs of question and answer that are scored at a time.

        Raises:
            ValueError: there are no candidates, they have different first tokens, or k is below 1.
        """
        if candidate_input_ids.shape[0] == 0 or candidate_input_ids.shape[1] < 2:
            raise ValueError(
                f"candidate answers need two tokens or more, [CLS] and a word, not {tuple(candidate_input_ids.shape)}"
            )
        if (candidate_input_ids[:, 0] != candidate_input_ids[0, 0]).any():
            raise ValueError("candidate answers must all begin with the same token, [CLS]")
        if k < 1:
            raise ValueError(f"k must be 1 or more, not {k}")
        k = min(k, candidate_input_ids.shape[0])
        if candidate_attention_mask is None:
            candidate_attention_mask = torch.ones_like(candidate_input_ids)
        memory = self.decoder.project_question(self.encode_question(input_ids, pixel_values, attention_mask))
        questions = input_ids.shape[0]
        begin = candidate_input_ids[:1, :1].expand(questions, 1)
        states = self.decoder.decode(begin, None, memory, attention_mask)
        first = self.decoder.predict(states[:, 0]).log_softmax(1)[:, candidate_input_ids[:, 1]]  # (B, C)
        first, kept = first.topk(k, dim=1)  # (B, k)
        scores = []
        step = max(1, batch_size // k)  # questions at a time
        for start in range(0, questions, step):
            rows = slice(start, start + step)
            chosen = kept[rows].flatten()
            scores.append(
                self._answer_scores(
                    candidate_input_ids[chosen],
                    candidate_attention_mask[chosen],
                    [(key[rows], value[rows]) for key, value in memory],
                    None if attention_mask is None else attention_mask[rows],
                ).view(-1, k)
            )
        log_probabilities = torch.cat(scores)
        score = log_probabilities + first if self.config.published_defects else log_probabilities
        probabilities, order = score.softmax(1).sort(dim=1, descending=True, stable=True)
        return AlbefAnswerRanking(
            answer_ids=kept.gather(1, order),
            probabilities=probabilities,
            log_probabilities=log_probabilities.gather(1, order),
        )

    def _answer_scores(
        self,
        answers: torch.Tensor,
        mask: torch.Tensor,
        memory: Sequence[KeysValues],
        question_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Log-probability (A,) of each answer. memory: of questions, each with equally many consecutive answers."""
        states = self.decoder.decode(answers[:, :-1], mask[:, :-1], memory, question_mask)
        counts = mask[:, 1:].to(torch.bool)
        logits = self.decoder.predict(states[counts])  # no padding: logits over a vocabulary take memory
        tokens = logits.gather(1, answers[:, 1:][counts][:, None]).squeeze(1) - logits.logsumexp(1)
        scores = torch.zeros(counts.shape, dtype=tokens.dtype, device=tokens.device)
        scores[counts] = tokens
        return scores.sum(1)

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Write an answer to each of B questions: token ids (B, 1 + new tokens), from [CLS] to [SEP], then padding.

        The question is encoded once, with its keys and values.

        Args:
            input_ids, attention_mask, pixel_values: as in `forward`.
            kwargs: arguments of transformers' `generate`, such as `generation_config` (that of the model where left
                out), `max_new_tokens` (10 where neither it nor `max_length` is given), `num_beams`, `do_sample` or
                `num_return_sequences` (answers to one question are consecutive rows).

        Raises:
            ValueError: neither arguments nor configurations say which token begins an answer.
        """
        given = kwargs.pop("generation_config", None) or self.generation_config
        options, others = self.decoder.answer_options(given, kwargs)
        memory = self.decoder.project_question(self.encode_question(input_ids, pixel_values, attention_mask))
        return self.decoder.generate(
            torch.full((input_ids.shape[0], 1), options.bos_token_id, device=input_ids.device),
            generation_config=options,
            question_keys_values=torch.stack([torch.stack(both, dim=1) for both in memory], dim=1),
            question_mask=attention_mask,
            **others,
        )


def _check_answers(
    questions: int,
    answers: torch.Tensor,
    weights: torch.Tensor | None,
    per_question: torch.Tensor | None,
) -> None:
    if answers.shape[1] < 2:
        raise ValueError(f"an answer needs two tokens or more, [CLS] and a word; there are {answers.shape[1]}")
    if weights is None:
        raise ValueError(f"answer_weights are missing: one for each of the {answers.shape[0]} answers")
    if weights.shape != answers.shape[:1]:
        raise ValueError(f"{answers.shape[0]} answers need as many answer_weights, not {tuple(weights.shape)}")
    if per_question is None:
        if answers.shape[0] != questions:
            raise ValueError(
                f"{answers.shape[0]} answers to {questions} questions: answers_per_question must say how many each has"
            )
        return
    if per_question.shape != (questions,):
        raise ValueError(f"answers_per_question is {tuple(per_question.shape)}, but there are {questions} questions")
    # On a GPU this check would wait for the device in every step.
    if per_question.device.type == "cpu" and int(per_question.sum()) != answers.shape[0]:
        raise ValueError(
            f"answers_per_question add up to {int(per_question.sum())}, but there are {answers.shape[0]} answers"
        )


__all__ = [
    "AlbefAnswerRanking",
    "AlbefForQuestionAnswering",
    "AlbefForQuestionAnsweringOutput",
]
