"""One sequence: tokens from the model, one after the other, until something ends it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from quill.adapters.ngram.choices import Choices
from quill.adapters.ngram.model import ORDER
from quill.adapters.ngram.sampling import draw, generator, log_probabilities
from quill.adapters.ngram.tokenizer import EOS_ID
from quill.adapters.ngram.vocabulary import Vocabulary
from quill.generation import Finish, FinishReason
from quill.llm.backend import Candidate, Finished, Tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from quill.adapters.ngram.model import NgramModel
    from quill.adapters.ngram.options import Options

_LENGTH = Finished(Finish(FinishReason.LENGTH))
_STOP = Finished(Finish(FinishReason.STOP))


def write(model: NgramModel, prompt: Sequence[int], options: Options) -> Iterator[Tokens | Finished]:
    """The tokens of a sequence, one event each, and how it ended.

    It ends with STOP at the end of sequence, which is no token of the output; with STOP at a stop token, which is
    one only with ``include_stop``, and which the end of sequence may be, too; with STOP where a choice is complete and
    begins no other; and with LENGTH after ``max_tokens``. Where nothing else may come (a choice is complete, every
    token is a stop token), the end comes in spite of ``min_tokens`` and ``ignore_eos``.

    The log probability of a token, and of the candidates, is the natural logarithm under the model's own distribution
    after logit_bias and after leaving out what may not come: before temperature, top_k, top_p and min_p
    (``sampling``, step 2). Candidates are the most probable tokens, the drawn one not left out; of equally probable
    ones those with the lower ids come first. Tokens of probability 0 are never among them.
    """
    context = list(prompt)
    numbers = generator(options.seed)
    choices = Choices(options.choices, model.tokenizer) if options.choices else None
    for written in range(options.max_tokens):
        logprobs = log_probabilities(
            model.distribution(context),
            options.sampling.logit_bias,
            allowed=choices.allowed() if choices else None,
            forbidden=options.forbidden(written),
        )
        id_ = draw(logprobs, options.sampling, numbers)
        stops = id_ in options.stop_token_ids
        if id_ == EOS_ID and not stops:
            yield _STOP
            return
        if not stops or options.include_stop:
            yield _tokens(id_, logprobs, options.candidates, model)
        if stops:
            yield Finished(Finish(FinishReason.STOP, stop_token_id=id_))
            return
        context.append(id_)
        if choices:
            choices.advance(id_)
            if choices.complete:
                yield _STOP
                return
    yield _LENGTH


def read(model: NgramModel, prompt: Sequence[int], candidates: int) -> Tokens:
    """The tokens of a prompt, with the log probability that each has after those before it. The first has none.

    The probabilities are the model's own: no request changes what it thinks of a prompt. Candidates as in ``write``.
    """
    logprobs: list[float | None] = [None] * len(prompt)
    top_logprobs: list[tuple[Candidate, ...]] = [()] * len(prompt)
    for at in range(1, len(prompt)):
        distribution = np.log(model.distribution(prompt[max(0, at - ORDER) : at]))
        logprobs[at] = float(distribution[prompt[at]])
        top_logprobs[at] = _most_probable(distribution, candidates, model) if candidates else ()
    columns = Vocabulary(model.tokenizer).columns(prompt)
    return replace(columns, logprobs=logprobs, top_logprobs=top_logprobs)


def _tokens(id_: int, logprobs: NDArray[np.float64], candidates: int | None, model: NgramModel) -> Tokens:
    return Tokens(
        data=(model.tokenizer.told_bytes(id_),),
        ids=(id_,),
        logprobs=None if candidates is None else (float(logprobs[id_]),),
        top_logprobs=(_most_probable(logprobs, candidates, model),) if candidates else None,
        special=(True,) if id_ == EOS_ID else None,
    )


def _most_probable(logprobs: NDArray[np.float64], count: int, model: NgramModel) -> tuple[Candidate, ...]:
    ranked = np.argsort(-logprobs, kind="stable")[:count].tolist()
    return tuple(
        Candidate(id_, model.tokenizer.told_bytes(id_), float(logprobs[id_]))
        for id_ in ranked
        if logprobs[id_] > -np.inf
    )
