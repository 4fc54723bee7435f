"""TRL's GRPOTrainer with a group's prompt computed once (Liu et al. 2025, "Prefix Grouper", section 3)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import pad
from trl import GRPOConfig, GRPOTrainer
from trl.models.utils import unwrap_model_for_generation

from pipelines.policy.chat import tokens_of
from pipelines.policy.prefill import only_attends, positions, prefilled, spread

PIECES = 4  # that a batch is scored in, by the length of its answers


def can_share(settings: GRPOConfig, model: Any) -> bool:
    """Whether prompts can be computed apart from answers: one process, no checkpointing, nothing but attention."""
    plain = settings.cache_implementation is None and not settings.deepspeed and not settings.fsdp
    return plain and only_attends(model) and not settings.gradient_checkpointing and settings.world_size == 1


class SharedPromptTrainer(GRPOTrainer):
    """One forward pass for each different prompt of a batch, in generation and in the loss.

    Answers that have ended leave a generation. Answers of like length are scored together, so little is computed behind
    their ends; those that are worth as much as their group's others move nothing, and are scored without a gradient.
    """

    _idle: torch.Tensor | None = None  # of the batch whose loss is computed: rows that have no gradient

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, multimodal_fields: dict[str, Any], *counts: Any, **further: Any
    ) -> tuple[list[list[int]], None]:
        elsewhere = self.use_vllm or self.use_transformers_continuous_batching
        if elsewhere or multimodal_fields or self.args.generation_kwargs:
            made: Any = super()._generate_single_turn(prompt_ids, images, multimodal_fields, *counts, **further)
            return made
        settings = {**self.generation_kwargs, "eos_token_id": list(self.eos_token_ids)}
        with (
            unwrap_model_for_generation(
                self.model_wrapped, self.accelerator, generation_kwargs=self.generation_kwargs
            ) as model,
            torch.no_grad(),
        ):
            return tokens_of(model, self._tokenizer, prompt_ids, settings), None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        advantages = inputs["advantages"].reshape(len(inputs["completion_ids"]), -1)
        self._idle = (advantages == 0).all(dim=1) if self.beta == 0 else None
        try:
            loss: torch.Tensor = super()._compute_loss(model, inputs)
            return loss
        finally:
            self._idle = None

    def _get_per_token_logps_and_entropies(  # noqa: PLR0913 - the signature is TRL's
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **images: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        if compute_aux_loss or any(value is not None for value in images.values()):
            return super()._get_per_token_logps_and_entropies(
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size,
                compute_entropy,
                compute_aux_loss,
                **images,
            )
        size, rows = batch_size or len(input_ids), torch.arange(len(input_ids), device=input_ids.device)
        idle = (
            self._idle if self._idle is not None and not self._idle.all() else torch.zeros_like(rows, dtype=torch.bool)
        )
        order, found = [], []
        for moves in (True, False):
            chosen = rows[idle != moves]
            with torch.set_grad_enabled(moves and torch.is_grad_enabled()):
                for part in chosen.split(size) if len(chosen) else ():
                    for piece, scored in self._scored(model, input_ids[part], attention_mask[part], logits_to_keep):
                        order.append(part[piece])
                        found.append(scored)
        back = torch.cat(order).argsort()
        entropies = torch.cat([entropy for _, entropy in found])[back] if compute_entropy else None
        return torch.cat([logps for logps, _ in found])[back], entropies, None

    def _scored(self, model: Any, ids: torch.Tensor, mask: torch.Tensor, kept: int) -> Iterator[tuple[Any, Any]]:
        """Rows' numbers, with log-probabilities and entropies of their last `kept` tokens, both (rows, kept)."""
        begin = ids.size(1) - kept - 1  # the prompt's last token is asked for the answer's first
        lengths = mask[:, begin + 1 :].sum(dim=1)
        with self.accelerator.autocast():
            cache, which = prefilled(model, ids[:, :begin], mask[:, :begin])
            for piece in lengths.argsort(stable=True).tensor_split(PIECES):
                if not len(piece):
                    continue
                end = begin + 1 + max(1, int(lengths[piece].max()))
                seen = mask[piece, :end]
                labels = ids[piece, begin:end].masked_fill(seen[:, begin:] == 0, -100)
                labels[:, 0] = -100
                made = model(
                    input_ids=ids[piece, begin:end],
                    attention_mask=seen,
                    position_ids=positions(seen)[:, begin:],
                    past_key_values=spread(cache, which[piece]),
                    labels=labels,
                    fused_lm_head=True,
                )
                short = kept + begin + 1 - end
                yield piece, tuple(pad(part, (0, short)) for part in (made.log_probs, made.entropy))
