"""TRL's GRPOTrainer with a group's prompt computed once (Liu et al. 2025, "Prefix Grouper", section 3)."""

from typing import Any

import torch
from trl import GRPOConfig, GRPOTrainer

from pipelines.policy.prefill import generates_shared, only_attends, positions, prefilled


def can_share(settings: GRPOConfig, model: Any) -> bool:
    """Whether prompts can be computed apart from answers: one process, no checkpointing, nothing but attention."""
    plain = settings.cache_implementation is None
    return plain and only_attends(model) and not settings.gradient_checkpointing and settings.world_size == 1


class SharedPromptTrainer(GRPOTrainer):
    """One forward pass for each different prompt of a batch, in generation and in the loss."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        generates_shared(self.model)

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
        size = batch_size or len(input_ids)
        found = [
            self._scored(model, input_ids[at : at + size], attention_mask[at : at + size], logits_to_keep)
            for at in range(0, len(input_ids), size)
        ]
        entropy = torch.cat([part[1] for part in found]) if compute_entropy else None
        return torch.cat([part[0] for part in found]), entropy, None

    def _scored(
        self, model: Any, ids: torch.Tensor, mask: torch.Tensor, kept: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities and entropies of the last `kept` tokens, both (batch, kept)."""
        begin = ids.size(1) - kept - 1  # the prompt's last token is asked for the answer's first
        with self.accelerator.autocast():
            cache = prefilled(model, ids[:, :begin], mask[:, :begin])
            labels = ids.masked_fill(mask == 0, -100)[:, begin:].clone()
            labels[:, 0] = -100
            made = model(
                input_ids=ids[:, begin:],
                attention_mask=mask,
                position_ids=positions(mask)[:, begin:],
                past_key_values=cache,
                labels=labels,
                fused_lm_head=True,
            )
        return made.log_probs[:, -kept:], made.entropy[:, -kept:]
