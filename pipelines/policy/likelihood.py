"""How likely a model finds given answers; what many of them begin with is computed once."""

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.policy.chat import inner, learns_a_prompt
from pipelines.policy.template import ends_of

Tokens = Sequence[int]
Scored = tuple[float, bool]

LOGITS = 2**27  # values of logits held at once
MASK = 2**26  # values of an attention mask held at once
TOKENS = 2**14  # of a batch, padding included
TAIL = 8  # tokens at a prompt's end that an option's first token may depend on


@torch.inference_mode()
def continuation_likelihoods(
    model: Any,
    contexts: Sequence[Tokens],
    continuations: Sequence[Sequence[Tokens]],
    batch_size: int,
    done: Callable[[int], None] = lambda count: None,
) -> list[list[Scored]]:
    """For each context and each of its continuations: the sum of the log-probabilities, and whether it is greedy.

    A context's continuations share what they begin with: they become a tree of tokens behind the context, in one
    sequence whose attention mask lets a token see its own branch alone (Miao et al. 2024, "SpecInfer", section
    4.2). Where a model's attention can't be told that (sliding windows, recurrent layers, images, learned prompts),
    each branch is a sequence of its own. `batch_size` is the most sequences of a batch; `LOGITS`, `MASK` and
    `TOKENS` bound its memory. Raises ValueError for a context or a continuation without tokens.
    """
    if not all(contexts) or not all(all(given) for given in continuations):
        raise ValueError("expected tokens in every context and every continuation")
    runner = _Runner(model)
    parts = _parts(contexts, continuations, runner.whole, LOGITS // runner.vocabulary)
    found: list[list[Scored]] = [[(0.0, True)] * len(given) for given in continuations]
    waiting = Counter(part.row for part in parts)
    for batch in runner.batches(parts, batch_size):
        for part, scores in zip(batch, runner.scores(batch), strict=True):
            for member, scored in zip(part.members, scores, strict=True):
                found[part.row][member] = scored
            waiting[part.row] -= 1
            if not waiting[part.row]:
                done(1)
    return found


def option_likelihoods(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Tokens],
    options: Sequence[str],
    batch_size: int,
    done: Callable[[int], None] = lambda count: None,
) -> NDArray[np.float64]:
    """Log-probability of each option as the whole answer, the end of the turn included: (prompts, options).

    Of several tokens that end a turn any will do: their probabilities add up.
    """
    ends = ends_of(model.generation_config, tokenizer)
    special = set(tokenizer.all_special_ids)
    written: dict[tuple[int, ...], list[list[int]]] = {}
    continuations = []
    for prompt in prompts:
        tail = _tail(prompt, special)
        if tail not in written:
            answers = _as_answered(tokenizer, tail, options)
            written[tail] = [[*answer, end] for answer in answers for end in ends]
        continuations.append(written[tail])
    found = continuation_likelihoods(model, prompts, continuations, batch_size, done)
    each = np.array([[value for value, _ in row] for row in found], dtype=np.float64)
    return np.asarray(np.logaddexp.reduce(each.reshape(len(prompts), len(options), len(ends)), axis=2))


def _tail(prompt: Tokens, special: set[int]) -> tuple[int, ...]:
    """The end of a prompt, from its last special token on where one is near."""
    end = tuple(prompt[-TAIL:])
    return end[max((i for i, token in enumerate(end) if token in special), default=0) :]


def _as_answered(tokenizer: Any, tail: tuple[int, ...], options: Sequence[str]) -> list[list[int]]:
    """Each option's tokens as they would follow the prompt.

    By itself an option may get a space in front that no model writes there. The prompt is given, so a token that
    would reach across its end is none that the model could write.
    """
    before = tokenizer.decode(list(tail), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    alone = tokenizer(list(options), add_special_tokens=False)["input_ids"]
    behind = tokenizer([before + option for option in options], add_special_tokens=False)["input_ids"]
    return [
        whole[len(tail) :] if tuple(whole[: len(tail)]) == tail else by_itself
        for whole, by_itself in zip(behind, alone, strict=True)
    ]


class _Tree:
    """Continuations of one context, with what they begin with shared.

    Node 0 is the context's last token, every other node a token that something follows. An edge is a node and a
    token that follows it; a continuation is a path of edges.
    """

    def __init__(self, continuations: Sequence[Tokens]) -> None:
        self.parents, self.tokens = [-1], [-1]
        nodes: dict[tuple[int, int], int] = {}
        edges: dict[tuple[int, int], int] = {}
        path: list[int] = []
        self.starts: list[int] = []  # where each continuation's path starts in `path`
        self.last: list[int] = []  # the node that each continuation's last token follows
        for continuation in continuations:
            node = 0
            self.starts.append(len(path))
            for place, token in enumerate(continuation, start=1):
                path.append(edges.setdefault((node, token), len(edges)))
                if place < len(continuation):
                    node = self._child(nodes, node, token)
            self.last.append(node)
        self.path = np.array(path)
        self.edges = torch.tensor(list(edges)).T  # (2, edges): nodes and tokens

    def _child(self, nodes: dict[tuple[int, int], int], node: int, token: int) -> int:
        if (node, token) not in nodes:
            nodes[node, token] = len(self.parents)
            self.parents.append(node)
            self.tokens.append(token)
        return nodes[node, token]

    def __len__(self) -> int:
        return len(self.parents)

    def leaf_of(self) -> list[int]:
        """For each node the first leaf at or below it."""
        found = list(range(len(self)))
        for node in range(len(self) - 1, 0, -1):  # a child's number is larger than its parent's
            found[self.parents[node]] = found[node]
        return found

    def seen(self) -> NDArray[np.bool_]:
        """Which nodes each node but the context's last token sees: (nodes - 1, nodes - 1)."""
        seen = np.eye(len(self), dtype=bool)
        for node in range(1, len(self)):
            seen[node] |= seen[self.parents[node]]
        return seen[1:, 1:]

    def depths(self) -> NDArray[np.int64]:
        """How far behind the context's last token each node but that one is."""
        found = np.zeros(len(self), dtype=np.int64)
        for node in range(1, len(self)):
            found[node] = found[self.parents[node]] + 1
        return found[1:]

    def scores(self, logits: torch.Tensor) -> list[Scored]:
        """The continuations' scores by the logits at every node: (nodes, vocabulary)."""
        logits = logits.float() if logits.dtype.itemsize < 4 else logits
        nodes, tokens = self.edges.to(logits.device)
        top = logits.amax(dim=-1)
        total = top + (logits - top[:, None]).exp_().sum(dim=-1).log_()
        found = logits[nodes, tokens]
        greedy = found == top[nodes]
        # Of equally likely tokens the first is taken; to find it takes longer than all of the above.
        greedy[greedy.clone()] = logits[nodes[greedy]].argmax(dim=-1) == tokens[greedy]
        values = (found - total[nodes]).double().cpu().numpy()
        sums = np.add.reduceat(values[self.path], self.starts)
        agree = np.logical_and.reduceat(greedy.cpu().numpy()[self.path], self.starts)
        return list(zip(sums.tolist(), agree.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class _Part:
    """Some of one context's continuations, that go into one sequence: `members` are their places."""

    row: int
    context: Tokens
    members: list[int]
    tree: _Tree

    def __len__(self) -> int:
        return len(self.context) + len(self.tree) - 1


def _parts(
    contexts: Sequence[Tokens], continuations: Sequence[Sequence[Tokens]], whole: bool, nodes: int
) -> list[_Part]:
    """Every context's parts: `whole` trees of up to so many `nodes`, or single branches. The longest go first."""
    split: dict[int, list[tuple[list[int], _Tree]]] = {}  # contexts may be given the very same continuations
    found = []
    for row, (context, given) in enumerate(zip(contexts, continuations, strict=True)):
        if id(given) not in split:
            groups = _within(given, nodes) if whole else _branches(given)
            split[id(given)] = [(members, _Tree([given[i] for i in members])) for members in groups]
        found += [_Part(row, context, members, tree) for members, tree in split[id(given)]]
    return sorted(found, key=lambda part: (-len(part), part.row))


def _within(given: Sequence[Tokens], nodes: int) -> list[list[int]]:
    """Neighbours in the order of their tokens, as many as make a tree of the size for certain."""
    groups: list[list[int]] = []
    room = 0
    for member in sorted(range(len(given)), key=lambda i: (tuple(given[i]), i)):
        new = len(given[member])
        if groups:
            new -= _shared(given[groups[-1][-1]], given[member])
        if not groups or new > room:
            groups.append([])
            room, new = nodes, len(given[member])
        groups[-1].append(member)
        room -= new
    return groups


def _shared(one: Tokens, other: Tokens) -> int:
    """How many tokens both begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _branches(given: Sequence[Tokens]) -> list[list[int]]:
    """Continuations that lie on one branch: each but the longest is, but for its last token, how another begins."""
    tree = _Tree(given)
    leaf_of = tree.leaf_of()
    groups: dict[int, list[int]] = {}
    for member, last in enumerate(tree.last):
        groups.setdefault(leaf_of[last], []).append(member)
    return list(groups.values())


class _Runner:
    """Batches of parts and their logits; `whole` says whether the model takes trees."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.whole = _takes_trees(model)
        self.vocabulary = inner(model).get_output_embeddings().weight.shape[0]
        self.keeps = "logits_to_keep" in inspect.signature(inner(model).forward).parameters

    def batches(self, parts: Sequence[_Part], batch_size: int) -> Iterator[list[_Part]]:
        """Parts in their order, as many as fit."""
        batch: list[_Part] = []
        for part in parts:
            if batch and (len(batch) == batch_size or not self._fits([*batch, part])):
                yield batch
                batch = []
            batch.append(part)
        if batch:
            yield batch

    def _fits(self, batch: Sequence[_Part]) -> bool:
        width, kept = self._size(batch)
        mask = width * width if self.whole else width
        logits = (kept if self.keeps else width) * self.vocabulary
        return all(len(batch) * each <= limit for each, limit in ((width, TOKENS), (mask, MASK), (logits, LOGITS)))

    def _size(self, batch: Sequence[_Part]) -> tuple[int, int]:
        """How wide the batch is, and how many of its last positions hold all the nodes."""
        contexts = [len(part.context) for part in batch]
        if self.whole:
            nodes = max(len(part.tree) for part in batch)
            return max(contexts) + nodes - 1, nodes
        width = max(len(part) for part in batch)
        return width, width - min(contexts) + 1

    def scores(self, batch: Sequence[_Part]) -> Iterator[list[Scored]]:
        """The scores of each part's members."""
        width, kept = self._size(batch)
        given = _packed(batch, width, kept) if self.whole else _apart(batch, width)
        if self.whole and inner(self.model).config._attn_implementation == "eager":  # which adds the mask
            hidden = ~given["attention_mask"]
            lowest = torch.finfo(inner(self.model).dtype).min
            given["attention_mask"] = torch.zeros(hidden.shape, dtype=inner(self.model).dtype)
            given["attention_mask"].masked_fill_(hidden, lowest)
        moved = {name: each.to(self.model.device) for name, each in given.items()}
        less: dict[str, Any] = {} if learns_a_prompt(self.model) else {"use_cache": False}
        less |= {"logits_to_keep": kept} if self.keeps else {}
        logits = self.model(**moved, **less).logits[:, -kept:]
        for part, rows in zip(batch, logits, strict=True):
            first = 0 if self.whole else kept - (width - len(part.context) + 1)
            yield part.tree.scores(rows[first : first + len(part.tree)])


def _takes_trees(model: Any) -> bool:
    """Whether every layer attends to whatever the mask shows, by the positions that are given with the tokens."""
    base = inner(model)
    text_alone = base.config.get_text_config() is base.config and not base.config.is_encoder_decoder
    if not text_alone or learns_a_prompt(model) or getattr(base.config, "alibi", False):
        return False
    told = "position_ids" in inspect.signature(base.forward).parameters
    if not told or base.config._attn_implementation not in ("sdpa", "eager"):
        return False
    # What a model keeps of a token tells its layers' kinds more surely than its configuration's many spellings.
    probe = model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=True)
    layers = getattr(getattr(probe, "past_key_values", None), "layers", [])
    return len(layers) > 0 and all(type(layer).__name__ == "DynamicLayer" for layer in layers)


def _packed(batch: Sequence[_Part], width: int, nodes: int) -> dict[str, torch.Tensor]:
    """Left-padded contexts, and the trees behind them, that end and begin in the same place in every row."""
    ids = np.zeros((len(batch), width), dtype=np.int64)
    positions = np.zeros((len(batch), width), dtype=np.int64)
    mask = np.zeros((len(batch), width, width), dtype=bool)
    mask[:, np.arange(width), np.arange(width)] = True  # a query that sees nothing makes NaN
    end = width - nodes + 1
    for row, part in enumerate(batch):
        begin, stop = end - len(part.context), end + len(part.tree) - 1
        ids[row, begin:stop] = [*part.context, *part.tree.tokens[1:]]
        positions[row, begin:end] = np.arange(len(part.context))
        positions[row, end:stop] = len(part.context) - 1 + part.tree.depths()
        mask[row, begin:end, begin:end] = np.tri(len(part.context), dtype=bool)
        mask[row, end:stop, begin:end] = True
        mask[row, end:stop, end:stop] = part.tree.seen()
    given = {"input_ids": ids, "position_ids": positions, "attention_mask": mask[:, None]}
    return {name: torch.from_numpy(each) for name, each in given.items()}


def _apart(batch: Sequence[_Part], width: int) -> dict[str, torch.Tensor]:
    """Right-padded sequences: what stands behind a token changes nothing for it, whatever the layers are."""
    rows = [[*part.context, *part.tree.tokens[1:]] for part in batch]
    ids = [[*row, *[0] * (width - len(row))] for row in rows]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
