"""Train the embedded base model `tiny` (tokenizer and weights) from the shipped training texts."""

import argparse
import csv
import hashlib
import json
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.preprocessing import normalize
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

HERE = Path(__file__).resolve().parent
DATA = HERE.parent
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORD = re.compile(r"[A-Za-z0-9']+")

# CLINC's banking and credit_cards domains, and exchange_rate, overlap with the Banking77 task:
# their queries are read as plain text, their intent names never.
# fmt: off
BANKING_INTENTS = frozenset(
    {
        "freeze_account", "routing", "pin_change", "bill_due", "pay_bill", "account_blocked",
        "interest_rate", "min_payment", "bill_balance", "transfer", "order_checks", "balance",
        "spending_history", "transactions", "report_fraud", "replacement_card_duration",
        "expiration_date", "damaged_card", "improve_credit_score", "report_lost_card", "card_declined",
        "credit_limit_change", "apr", "redeem_rewards", "credit_limit", "rewards_balance",
        "application_status", "credit_score", "new_card", "international_fees", "exchange_rate",
    }
)
# fmt: on
RESTORE = "Restore the sentence."
REPHRASE = "Say it in other words."
KEYWORDS = "Give the key words."

Recipe = dict[str, Any]
Pair = tuple[str, str]
Ids = tuple[list[int], int]


@dataclass
class Corpus:
    """The texts the tasks draw from."""

    banking: list[str]
    clinc: list[Pair]
    plain: list[str]
    gsm8k: list[Pair]
    topics: list[str]
    keywords: list[str]
    neighbours: list[list[int]]


# ---------------------------------------------------------------- data


def sha256(path: Path) -> str:
    """Return the hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_data(recipe: Recipe) -> None:
    """Stop if a data file differs from the one the recipe names."""
    for name, digest in recipe["data"].items():
        if sha256(DATA / name) != digest:
            raise SystemExit(f"{name}: its sha256 is not the one in the recipe")


def read_banking() -> list[str]:
    """Read the texts of Banking77's training split, and nothing else of it."""
    with (DATA / "banking77/train.csv").open(encoding="utf-8", newline="") as file:
        return [" ".join(row["text"].split()) for row in csv.DictReader(file)]


def read_clinc() -> tuple[list[Pair], list[str]]:
    """Read CLINC150's training queries: those with an intent to learn, and the bare ones."""
    data = json.loads((DATA / "clinc150/data_full.json").read_text(encoding="utf-8"))
    named = [(q, i) for q, i in data["train"] if i not in BANKING_INTENTS]
    bare = [q for q, i in data["train"] if i in BANKING_INTENTS]
    return named, bare + [q for q, _ in data["oos_train"]]


def read_gsm8k() -> list[Pair]:
    """Read GSM8K's training problems and their worked answers."""
    lines = (DATA / "gsm8k/train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [(row["question"], row["answer"]) for row in rows]


# ---------------------------------------------------------------- label-free structure


def common_words(queries: list[str], share: float) -> list[str]:
    """Return the words found in more than a share of everyday queries."""
    counter = CountVectorizer(min_df=share)
    counter.fit(queries)
    return list(counter.get_feature_names_out())


def embed(texts: list[str], common: list[str], dims: int, seed: int) -> tuple[Any, np.ndarray, list[str]]:
    """Return the tf-idf matrix of the texts, its unit-length projection and its terms."""
    tfidf = TfidfVectorizer(stop_words=common, ngram_range=(1, 2), min_df=3, sublinear_tf=True)
    matrix = tfidf.fit_transform(texts)
    points = TruncatedSVD(dims, random_state=seed).fit_transform(matrix)
    return matrix, normalize(points), list(tfidf.get_feature_names_out())


def slug(weights: np.ndarray, terms: list[str], count: int) -> str:
    """Join the heaviest single words into one snake_case name."""
    order = np.argsort(-weights, kind="stable")[: 6 * count]
    words = [terms[i] for i in order if " " not in terms[i] and weights[i] > 0]
    return "_".join(words[:count])


def name_topics(
    matrix: Any, points: np.ndarray, terms: list[str], spec: Recipe, seed: int
) -> tuple[list[str], list[str]]:
    """Cluster the texts and return, for each, its cluster's name and its own key words."""
    labels = KMeans(spec["clusters"], n_init=3, random_state=seed).fit_predict(points)
    overall = np.asarray(matrix.mean(axis=0)).ravel()
    names = {}
    for label in range(spec["clusters"]):
        inside = np.asarray(matrix[np.flatnonzero(labels == label)].mean(axis=0)).ravel()
        names[label] = slug(inside - overall, terms, spec["words"])
    own = [slug(row.toarray().ravel(), terms, spec["words"]) for row in matrix]
    return [names[label] for label in labels], own


def find_neighbours(points: np.ndarray, count: int) -> list[list[int]]:
    """Return the indices of each text's nearest other texts."""
    found = []
    for start in range(0, len(points), 1000):
        scores = points[start : start + 1000] @ points.T
        found += np.argsort(-scores, axis=1, kind="stable")[:, 1 : 1 + count].tolist()
    return found


def build_corpus(recipe: Recipe) -> Corpus:
    """Read all the texts and derive the label-free targets."""
    spec, seed = recipe["topics"], recipe["seed"]
    banking = read_banking()
    clinc, plain = read_clinc()
    common = common_words([query for query, _ in clinc], spec["common"])
    matrix, points, terms = embed(banking, common, spec["dims"], seed)
    topics, keywords = name_topics(matrix, points, terms, spec, seed)
    neighbours = find_neighbours(points, spec["neighbours"])
    return Corpus(banking, clinc, plain, read_gsm8k(), topics, keywords, neighbours)


# ---------------------------------------------------------------- tasks


def turn(role: str, content: str) -> str:
    """Render one finished turn as the chat template does."""
    return f"{START}{role}\n{content}{END}\n"


def chat(user: str, answer: str, system: str = "") -> Pair:
    """Render an exchange as a prompt and a completion."""
    head = turn("system", system) if system else ""
    return f"{head}{turn('user', user)}{START}assistant\n", f"{answer}{END}\n"


def thin(rng: random.Random, text: str, rate: float) -> str:
    """Drop words at random, so that passes over the same text differ."""
    words = text.split()
    kept = [word for word in words if rng.random() >= rate]
    return " ".join(kept or words)


def recase(rng: random.Random, text: str) -> str:
    """Now and then write a query in lower case or without its closing mark."""
    if rng.random() < 0.3:
        text = text.lower()
    return text.rstrip("?.!") if rng.random() < 0.2 else text


def shuffle_words(rng: random.Random, text: str) -> str:
    """Move words a few places and drop some."""
    words = thin(rng, text, 0.15).split()
    keys = [i + rng.uniform(0, 4) for i in range(len(words))]
    return " ".join(word for _, word in sorted(zip(keys, words, strict=True)))


def intent_task(rng: random.Random, corpus: Corpus, index: int) -> Pair:
    """Name the intent of a CLINC150 query."""
    query, intent = corpus.clinc[index % len(corpus.clinc)]
    return chat(thin(rng, query, rng.choice((0.0, 0.15))), intent)


def topic_task(rng: random.Random, corpus: Corpus, index: int) -> Pair:
    """Name the cluster of a banking query."""
    index %= len(corpus.banking)
    query = recase(rng, thin(rng, corpus.banking[index], rng.choice((0.0, 0.15))))
    return chat(query, corpus.topics[index])


def keyword_task(rng: random.Random, corpus: Corpus, index: int) -> Pair:
    """Give the rarest words of a banking query."""
    index %= len(corpus.banking)
    return chat(recase(rng, corpus.banking[index]), corpus.keywords[index], KEYWORDS)


def rephrase_task(rng: random.Random, corpus: Corpus, index: int) -> Pair:
    """Answer a banking query with one of its nearest neighbours."""
    index %= len(corpus.banking)
    other = rng.choice(corpus.neighbours[index])
    return chat(recase(rng, corpus.banking[index]), corpus.banking[other], REPHRASE)


def restore_task(rng: random.Random, corpus: Corpus, index: int) -> Pair:
    """Restore a shuffled query."""
    count = len(corpus.banking)
    index %= count + len(corpus.plain)
    text = corpus.banking[index] if index < count else corpus.plain[index - count]
    return chat(shuffle_words(rng, text), text, RESTORE)


def arithmetic_task(rng: random.Random, _corpus: Corpus, _index: int) -> Pair:
    """Solve a small sum, difference or product."""
    sign = rng.choice("++--*")
    a, b = (rng.randrange(1, rng.choice((10, 100))) for _ in range(2))
    if sign == "*":
        a, b = rng.randrange(1, 13), rng.randrange(1, 13)
    if sign == "-":
        a, b = max(a, b), min(a, b)
    value = {"+": a + b, "-": a - b, "*": a * b}[sign]
    form = rng.choice(("What is {}?", "What is {}?", "Compute {}.", "{} ="))
    return chat(form.format(f"{a} {sign} {b}"), str(value))


def gsm8k_task(_rng: random.Random, corpus: Corpus, index: int) -> Pair:
    """Answer a word problem with its worked solution."""
    question, answer = corpus.gsm8k[index % len(corpus.gsm8k)]
    return chat(question, answer)


def plain_task(_rng: random.Random, corpus: Corpus, index: int) -> Pair:
    """Read a bare query as plain text."""
    texts = corpus.plain
    return "", texts[index % len(texts)] + PAD


Task = Callable[[random.Random, Corpus, int], Pair]
TASKS: dict[str, Task] = {
    "intent": intent_task,
    "topic": topic_task,
    "keyword": keyword_task,
    "rephrase": rephrase_task,
    "restore": restore_task,
    "arithmetic": arithmetic_task,
    "gsm8k": gsm8k_task,
    "plain": plain_task,
}


def walk(rng: random.Random, size: int) -> Iterator[int]:
    """Yield indices for ever, each pass in a new order."""
    order = list(range(size))
    while True:
        rng.shuffle(order)
        yield from order


def draw_rows(mix: dict[str, float], corpus: Corpus, seed: int) -> Iterator[Pair]:
    """Yield rendered rows for ever, tasks mixed by the recipe's weights."""
    rng = random.Random(seed)
    names, weights = list(mix), list(mix.values())
    sizes = {"intent": len(corpus.clinc), "gsm8k": len(corpus.gsm8k), "plain": len(corpus.plain)}
    sizes["restore"] = len(corpus.banking) + len(corpus.plain)
    walks = {name: walk(rng, sizes.get(name, len(corpus.banking))) for name in names}
    while True:
        name = rng.choices(names, weights)[0]
        yield TASKS[name](rng, corpus, next(walks[name]))


# ---------------------------------------------------------------- tokenizer


def snake(text: str) -> str:
    """Write a text as one snake_case identifier."""
    return "_".join(WORD.findall(text.lower()))


def tokenizer_texts(corpus: Corpus) -> Iterator[str]:
    """Yield what the merges are learnt from; the queries count more than the long problems."""
    # The snake_case copies give pieces such as "_card" and "_transfer" for names of that form.
    for text in corpus.banking:
        yield from (turn("user", text), text, text, snake(text))
    for query, intent in corpus.clinc:
        yield from (query, turn("assistant", intent))
    yield from corpus.plain
    for question, answer in corpus.gsm8k[::8]:
        yield from (question, answer)


def train_tokenizer(texts: Iterator[str], size: int) -> Tokenizer:
    """Learn a byte-level BPE with Qwen's split into words and single digits."""
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tok.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tok.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, START, END],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    plain = (part for text in texts for part in re.split(r"<\|\w+\|>", text))
    tok.train_from_iterator(plain, trainer)
    return tok


def make_tokenizer(recipe: Recipe, corpus: Corpus, out: Path) -> PreTrainedTokenizerBase:
    """Train the tokenizer, or take the one the recipe names, and save it."""
    if recipe.get("tokenizer"):
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copyfile(DATA.parent / recipe["tokenizer"] / name, out / name)
        tok = AutoTokenizer.from_pretrained(out)
    else:
        core = train_tokenizer(tokenizer_texts(corpus), recipe["vocab_size"])
        tok = PreTrainedTokenizerFast(tokenizer_object=core, pad_token=PAD, eos_token=END, extra_special_tokens=[START])
        tok.model_max_length = recipe["model"]["max_position_embeddings"]
        tok.chat_template = (HERE / "chat_template.jinja").read_text(encoding="utf-8")
        tok.save_pretrained(out)
    check_template(tok)
    return tok


def check_template(tok: PreTrainedTokenizerBase) -> None:
    """Stop if the rows are not rendered as the chat template renders them."""
    messages = [{"role": r, "content": r} for r in ("system", "user", "assistant")]
    prompt, completion = chat("user", "assistant", "system")
    if tok.apply_chat_template(messages, tokenize=False) != prompt + completion:
        raise SystemExit("the chat template and the training rows disagree")


# ---------------------------------------------------------------- batches


def encode(tok: PreTrainedTokenizerBase, rows: list[Pair], limit: int) -> list[Ids]:
    """Turn rows into ids and the length of each prompt."""
    prompts = tok([p for p, _ in rows], add_special_tokens=False)["input_ids"]
    answers = tok([a for _, a in rows], add_special_tokens=False)["input_ids"]
    return [((p + a)[:limit], len(p)) for p, a in zip(prompts, answers, strict=True)]


def cut_batches(rows: list[Ids], tokens: int) -> list[list[Ids]]:
    """Cut rows, sorted by length, into batches of about the same padded size."""
    batches: list[list[Ids]] = [[]]
    for row in sorted(rows, key=lambda item: len(item[0])):
        if len(row[0]) * (len(batches[-1]) + 1) > tokens and batches[-1]:
            batches.append([])
        batches[-1].append(row)
    return batches


def draw_batches(stage: Recipe, corpus: Corpus, tok: PreTrainedTokenizerBase, seed: int) -> Iterator[list[Ids]]:
    """Yield shuffled batches of rows of similar length for ever."""
    rng = random.Random(seed + 1)
    rows = draw_rows(stage["mix"], corpus, seed)
    while True:
        chunk = [next(rows) for _ in range(stage["chunk_rows"])]
        batches = cut_batches(encode(tok, chunk, stage["max_length"]), stage["batch_tokens"])
        rng.shuffle(batches)
        yield from batches


def collate(batch: list[Ids], pad: int, prompt_weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad on the right and return the ids and each token's weight in the loss."""
    width = max(len(ids) for ids, _ in batch)
    ids = torch.full((len(batch), width), pad)
    weights = torch.zeros(len(batch), width)
    for i, (row, prompt) in enumerate(batch):
        ids[i, : len(row)] = torch.tensor(row)
        weights[i, : len(row)] = 1.0
        weights[i, :prompt] = prompt_weight
    return ids, weights


# ---------------------------------------------------------------- model and training


def make_model(recipe: Recipe, tok: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    """Build the untrained model."""
    ids = {"pad_token_id": tok.pad_token_id, "eos_token_id": tok.eos_token_id, "bos_token_id": None}
    config = Qwen3Config(vocab_size=len(tok), tie_word_embeddings=True, **ids, **recipe["model"])
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=False, **ids)
    return model


def make_optimizers(model: Qwen3ForCausalLM, train: Recipe) -> list[torch.optim.Optimizer]:
    """Give the matrices of the layers to Muon and all the rest to AdamW."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(matrices, lr=train["muon_lr"], weight_decay=train["weight_decay"])
    adamw = torch.optim.AdamW(rest, lr=train["adamw_lr"], betas=(0.9, 0.95), weight_decay=0.0)
    return [muon, adamw]


def lr_scale(done: float, train: Recipe) -> float:
    """Return the learning rate's factor: warm-up, plateau, then a linear fall to nought."""
    rise, fall = done / float(train["warmup"]), (1.0 - done) / float(train["decay"])
    return max(0.0, min(1.0, rise, fall))


def row_loss(model: Qwen3ForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the weighted next-token loss of a batch."""
    # Padding is on the right and attention is causal, so no real token sees it: no mask needed.
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    target, weight = ids[:, 1:], weights[:, 1:]
    kept = weight > 0
    logits = model.lm_head(hidden[kept]).float()
    losses = torch.nn.functional.cross_entropy(logits, target[kept], reduction="none")
    return (losses * weight[kept]).sum() / weight[kept].sum()


def step(
    model: Qwen3ForCausalLM,
    optimizers: list[torch.optim.Optimizer],
    batch: tuple[torch.Tensor, torch.Tensor],
    scale: float,
    autocast: bool,
) -> float:
    """Take one optimizer step and return the loss."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = row_loss(model, *batch)
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("peak", group["lr"]) * scale
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach())


def train_model(model: Qwen3ForCausalLM, batches: Iterator[list[Ids]], train: Recipe, pad: int) -> None:
    """Train until the recipe's number of tokens is read."""
    optimizers = make_optimizers(model, train)
    start, seen, steps = time.monotonic(), 0, 0
    while seen < train["tokens"]:
        batch = next(batches)
        scale = lr_scale(max(seen, 1) / train["tokens"], train)
        loss = step(model, optimizers, collate(batch, pad, train["prompt_weight"]), scale, train.get("autocast", True))
        seen, steps = seen + sum(len(ids) for ids, _ in batch), steps + 1
        if steps % 50 == 0:
            print(
                f"step {steps} tokens {seen} loss {loss:.3f} {time.monotonic() - start:.0f} s",
                flush=True,
            )


def run_stages(recipe: Recipe, corpus: Corpus, tok: PreTrainedTokenizerBase, out: Path, first: int) -> None:
    """Run the recipe's stages from the given one on, saving the weights after each."""
    model = load(out) if first else make_model(recipe, tok)
    for index, stage in enumerate(recipe["stages"][first:], first):
        batches = draw_batches(stage, corpus, tok, recipe["seed"] + 100 * index)
        train_model(model, batches, stage, tok.pad_token_id)
        save(model, out, recipe["dtype"])
        # The next stage starts from what was stored, so that resuming gives the same weights.
        model = load(out)


def load(out: Path) -> Qwen3ForCausalLM:
    """Read the weights stored by the stage before, in full precision."""
    return Qwen3ForCausalLM.from_pretrained(out, dtype=torch.float32).train()


def save(model: Qwen3ForCausalLM, out: Path, dtype: str) -> None:
    """Write the weights in the recipe's type and print their digest."""
    model.to(getattr(torch, dtype)).save_pretrained(out)
    count = sum(p.numel() for p in model.parameters())
    weights = out / "model.safetensors"
    print(f"{count} parameters, {weights.stat().st_size} bytes, sha256 {sha256(weights)}")


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, default=HERE / "tiny/recipe.yaml")
    parser.add_argument("--out", type=Path, help="folder to write; default: the recipe's own")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--first-stage", type=int, default=0, help="resume from the stored weights")
    return parser.parse_args()


def main() -> None:
    """Train a model by a recipe."""
    args = parse_args()
    recipe: Recipe = yaml.safe_load(args.recipe.read_text(encoding="utf-8"))
    out: Path = args.out or args.recipe.resolve().parent
    torch.set_num_threads(args.threads)
    torch.manual_seed(recipe["seed"])
    check_data(recipe)
    out.mkdir(parents=True, exist_ok=True)
    corpus = build_corpus(recipe)
    tok = make_tokenizer(recipe, corpus, out)
    run_stages(recipe, corpus, tok, out, args.first_stage)
    if out != args.recipe.resolve().parent:
        shutil.copy(args.recipe, out / "recipe.yaml")


if __name__ == "__main__":
    main()
