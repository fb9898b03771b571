"""lmms-eval on an exported model: `lmms-eval --model mvlm --model_args pretrained=FOLDER --tasks ...`.

lmms-eval finds it by this package's entry point `lmms_eval.models`. It expects models to write answers, which this one
cannot: it scores the answers that a task lists, and a fine-tuned model chooses among its classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image
from torch import Tensor
from transformers import AutoModel, AutoProcessor

from mvlm.export.auto import register
from mvlm.export.configuration import MaskVLMTaskConfig
from mvlm.runtime.wording import counted

MANIFEST = ModelManifest(model_id="mvlm", simple_class_path="mvlm.export.lmms_eval.AnswerScorer")
"""What the entry point refers to."""

SCORES = ("itm", "itc", "words")
ASKED = re.compile(r"\s*\banswer\s*:?\s*$", re.IGNORECASE)
"""The prompt after a question, for models that continue the text."""


class AnswerScorer(lmms):
    """Scores answers as lmms-eval's own models do: lower is better, since it takes the minimum.

    A pretrained model reads the question and an answer as one sentence. Its score is, by `itm`, minus the log
    probability that the sentence matches the image; by `itc`, one minus their cosine, over the temperature; by `words`,
    minus the sum of the log probabilities of the answer's tokens, each masked alone (pseudo-log-likelihood, Salazar et
    al., ACL 2020). A model fine-tuned to choose among answers or labels scores minus the log probability of the answer,
    infinite if it is not one of its own, and answers tasks that ask for text with the likeliest one.

    Args:
        pretrained: a folder that `mvlm export` wrote.
        by: one of `SCORES`; "" = itm if the model was trained for it, else itc.
        batch_size: image-sentence pairs per forward pass.
        device: torch's name for it; "" = a GPU if there is one.

    Raises:
        ValueError: the model was not trained for `by`.
    """

    def __init__(self, pretrained: str, by: str = "", batch_size: int | str = 32, device: str = "", **_: Any) -> None:
        super().__init__()
        register()
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.processor = AutoProcessor.from_pretrained(pretrained)
        self.model = AutoModel.from_pretrained(pretrained).eval().to(self.device)
        self.batch_size = 32 if batch_size == "auto" else int(batch_size)
        self.classes: dict[str, int] = {}
        self.by = by
        if isinstance(self.model.config, MaskVLMTaskConfig):
            self.classes = {name.lower(): int(number) for number, name in (self.model.config.id2label or {}).items()}
        else:
            self.by = self._score(by)

    def _score(self, by: str) -> str:
        weights = self.model.config.blueprint().objectives
        has = {"itm": weights.itm, "itc": weights.itc, "words": weights.text}
        chosen = by or ("itm" if weights.itm else "itc")
        if not has.get(chosen):
            offered = ", ".join(name for name in SCORES if has[name])
            raise ValueError(f"by={chosen}: this model was trained for {offered}, so give by= one of them.")
        return chosen

    @torch.inference_mode()
    def loglikelihood(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """For each request's answer, its score, and whether the model would have chosen it.

        By `words` an answer is chosen if each of its tokens is the likeliest, among classes if it is the likeliest; by
        itm and itc never. Both values are the "text" of a result: lmms-eval 0.7 turns a plain pair into a string, and
        then fails.

        Raises:
            ValueError: a request has no image, or not as many as the model reads.
        """
        found: list[tuple[float, bool]] = []
        for start in range(0, len(requests), self.batch_size):
            asked = [self._read(request.args) for request in requests[start : start + self.batch_size]]
            found += self._class_scores(asked) if self.classes else self._pair_scores(asked)
        return [GenerationResult(pair) for pair in found]

    @torch.inference_mode()
    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The likeliest class of each request.

        Raises:
            NotImplementedError: the model was not fine-tuned to choose among answers.
        """
        if not self.classes:
            raise NotImplementedError(
                "This model writes no text: take tasks of output_type multiple_choice or loglikelihood, or a model "
                "that was fine-tuned for questions (task.name = 'vqa')."
            )
        said: list[str] = []
        for start in range(0, len(requests), self.batch_size):
            asked = [self._read(request.args) for request in requests[start : start + self.batch_size]]
            best_B = self._logits([images for images, *_ in asked], [question for _, question, _ in asked]).argmax(1)
            said += [self.model.config.id2label[int(number)] for number in best_B]
        return said

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Raises `NotImplementedError`: this model cannot hold a conversation."""
        raise NotImplementedError("This model answers one question on one image: take tasks of a single round.")

    def _read(self, arguments: tuple[Any, ...]) -> tuple[list[Image.Image], str, str]:
        """A request's images, its question and its answer, which is "" if one is to be generated."""
        if len(arguments) < 6:
            raise ValueError("acc_mutual_info asks for the probability of an answer without an image: take acc.")
        context, answer, visual, number, task, split = arguments[-6:]
        row = self.task_dict[task][split][number]
        images = _flat(visual(row)) if callable(visual) else []
        wanted = 2 if getattr(self.model.config, "settings", {}).get("task", {}).get("name") == "nlvr2" else 1
        if len(images) != wanted:
            raise ValueError(
                f"Task {task}, row {number} has {counted(len(images), 'image')}, and this model reads {wanted}."
            )
        if callable(answer):
            answer = answer(row)
        elif not isinstance(answer, str):
            answer = ""
        return images, _question(context), str(answer).strip()

    def _pixels(self, images: Sequence[Image.Image]) -> Tensor:
        return self.processor(images=list(images))["pixel_values"].to(self.device)

    def _tokens(self, sentences: list[str]) -> tuple[Tensor, Tensor]:
        read = self.processor(text=sentences)
        return read["input_ids"].to(self.device), read["attention_mask"].to(self.device)

    def _class_scores(self, asked: Sequence[tuple[list[Image.Image], str, str]]) -> list[tuple[float, bool]]:
        logits_BA = self._logits([images for images, *_ in asked], [question for _, question, _ in asked])
        scores_BA, best_B = -logits_BA.float().log_softmax(1), logits_BA.argmax(1)
        numbers = [self.classes.get(answer.lower()) for *_, answer in asked]
        return [
            (float("inf"), False) if number is None else (float(scores_A[number]), int(best) == number)
            for number, scores_A, best in zip(numbers, scores_BA, best_B, strict=True)
        ]

    def _logits(self, images: Sequence[Sequence[Image.Image]], questions: list[str]) -> Tensor:
        pixels = torch.stack([self._pixels(views) for views in images])
        return self.model(pixels if pixels.shape[1] > 1 else pixels[:, 0], *self._tokens(questions)).logits

    def _pair_scores(self, asked: Sequence[tuple[list[Image.Image], str, str]]) -> list[tuple[float, bool]]:
        pixels = self._pixels([images[0] for images, *_ in asked])
        if self.by == "words":
            return [
                self._word_score(pixels[row : row + 1], question, answer)
                for row, (_, question, answer) in enumerate(asked)
            ]
        tokens = self._tokens([f"{question} {answer}".strip() for _, question, answer in asked])
        if self.by == "itm":
            scores_B = -self.model.match(pixels, *tokens).float().log_softmax(1)[:, 1]
        else:
            image_BE, text_BE = self.model.get_image_features(pixels), self.model.get_text_features(*tokens)
            scores_B = (1 - (image_BE * text_BE).sum(1)) / self.model.network.contrastive_scale()[0]
        return [(float(score), False) for score in scores_B]

    def _word_score(self, image_1CHW: Tensor, question: str, answer: str) -> tuple[float, bool]:
        """The score by `words`: each token of the answer is masked in its own copy of the sentence."""
        text_1L, mask_1L = self._tokens([f"{question} {answer}".strip()])
        before = len(self._words(question)) if question else 0
        places_M = torch.arange(1 + before, int(mask_1L.sum()) - 1, device=self.device)
        if not len(places_M):
            raise ValueError(f"The question leaves no room for the answer {answer!r}: by=itm reads what fits.")
        masked_ML = text_1L.repeat(len(places_M), 1)
        masked_ML[torch.arange(len(places_M)), places_M] = self.processor.tokenizer.mask_token_id
        logits_MLV = self.model.restore_words(
            image_1CHW.expand(len(places_M), -1, -1, -1), masked_ML, mask_1L.expand(len(places_M), -1)
        )
        logits_MV, right_M = logits_MLV[torch.arange(len(places_M)), places_M].float(), text_1L[0, places_M]
        return float(F.cross_entropy(logits_MV, right_M, reduction="sum")), bool((logits_MV.argmax(1) == right_M).all())

    def _words(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def _question(context: Any) -> str:
    """The first line of a context: the rest tells models that write how to answer."""
    text = context[0] if isinstance(context, list) else context
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return ASKED.sub("", lines[0]) if lines else ""


def _flat(visuals: Any) -> list[Image.Image]:
    """The images in a task's visuals, however nested."""

    def each(given: Any) -> Iterator[Image.Image]:
        if isinstance(given, (list, tuple)):
            for one in given:
                yield from each(one)
        elif given is not None:
            yield given

    return list(each(visuals))
