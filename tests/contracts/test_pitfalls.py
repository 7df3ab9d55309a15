"""What has gone wrong in other trainers, and the test that keeps each of it out of ours.

Files are named from tests/train.

1 means of means over micro-batches: test_loss.py::test_any_split_into_batches_gives_the_same_mean,
  test_run.py::test_micro_batches_change_nothing_but_memory
2 … in fine-tuning, where rows have unlike numbers of learnt tokens:
  ../contracts/test_full_finetuning.py::test_ten_steps_are_those_of_a_hand_written_loop (micro_tokens)
3 graphs held until the step ends:
  ../contracts/test_pitfalls.py::test_a_micro_batch_leaves_nothing_for_the_next_to_carry
4 ranks with unequal tokens: test_parallel.py::test_two_processes_learn_what_one_does,
  test_parallel.py::test_two_processes_fine_tune_as_one_does (few: a rank without any),
  test_run.py::test_two_processes_divide_by_what_both_have_seen
5 sums divided twice, or never, by losses of their own:
  losses/test_preference.py::test_any_split_of_the_pairs_has_the_same_sum,
  losses/test_policy.py::test_any_split_of_the_answers_has_the_same_mean,
  losses/test_distil.py::test_any_split_has_the_same_sum,
  stages/test_seq2seq.py::test_gradients_do_not_depend_on_micro_batches,
  stages/test_classify.py::test_gradients_do_not_depend_on_micro_batches
6 packed rows that see each other: test_loss.py::test_what_one_row_says_changes_no_other_row,
  ../contracts/test_families.py::test_packed_rows_give_the_gradients_of_each_row_alone
7 packed rows whose places go on counting: ../contracts/test_families.py::test_packed_rows_answer_as_each_row_alone
8 documents kept apart in pre-training, or not:
  objectives/test_asked.py::test_documents_of_a_sequence_do_not_see_each_other_unless_joined
9 rows without anything to learn: stages/test_sft.py::test_rows_that_cannot_be_learnt_are_left_out_and_counted,
  stages/test_sft.py::test_data_without_a_row_to_learn_is_refused,
  test_audit.py::test_rows_without_an_answer_are_counted,
  test_loss.py::test_a_batch_without_anything_to_learn_has_no_loss
10 padding that is the end token hides the end: test_loss.py::test_end_tokens_are_learnt_although_they_may_pad,
  test_audit.py::test_a_template_that_ends_no_answer_refuses
11 merging that rounds the adapter away: test_merge.py::test_merging_into_bf16_adds_in_fp32_and_rounds_once
12 merging into quantised weights: test_merge.py::test_an_adapter_on_8_bits_is_not_merged_into_them
13 tied tables after merging: test_merge.py::test_a_tied_table_that_trained_is_still_one_after_merging,
  test_weights.py::test_tied_weights_stay_tied_and_have_one_master
14 checkpointing that loses adapters' gradients: test_remat.py::test_gradients_are_the_same,
  ../contracts/test_pitfalls.py::test_adapters_learn_the_same_when_activations_are_computed_again
15 updates that vanish in bf16: test_weights.py::test_updates_too_small_for_bf16_are_not_lost,
  test_optim.py::test_weights_in_half_precision_are_our_mistake,
  ../contracts/test_full_finetuning.py::test_a_bf16_run_follows_the_fp32_one_and_saves_what_it_learnt
16 a head's gradient added up in bf16: losses/test_linear_head.py::test_the_heads_bf16_gradient_is_added_up_in_fp32,
  losses/test_tokens.py::test_a_trained_head_adds_its_gradient_up_in_fp32,
  test_weights.py::test_a_bf16_network_has_fp32_masters_that_add_up_its_gradients
17 fused losses with weights of tokens: losses/test_tokens.py::test_chunks_give_what_all_logits_at_once_give,
  losses/test_linear_head.py::test_gradients_are_right_for_every_chunk_size
18 angles of positions in bf16: ../models/test_positions.py::test_angles_are_exact_far_away_whatever_the_number_type
19 random numbers after a resume: test_run.py::test_killed_and_resumed_twice_with_dropout_it_ends_with_the_same_bits
20 order and epoch after a resume: stages/test_sft.py::test_a_run_that_crashed_ends_as_if_it_had_not,
  test_batches.py::test_a_step_is_the_same_whenever_it_is_asked_for,
  ../data/test_loader.py::test_a_mixture_resumes_exactly
21 the second resume: ../data/test_loader.py::test_two_resumes_in_a_row_equal_an_uninterrupted_run_over_epochs,
  ../contracts/test_full_finetuning.py::test_crashed_twice_it_ends_with_the_same_weights,
  stages/test_pretrain.py::test_a_run_that_crashed_twice_ends_as_if_it_had_not
22 half-written checkpoints: stages/test_sft.py::test_killed_twice_it_ends_with_the_same_bytes,
  test_checkpoint.py::test_a_damaged_one_is_passed_over,
  test_curve.py::test_who_dies_while_cutting_the_curve_back_leaves_all_of_it
23 weights that are no numbers, saved over good ones:
  stages/test_sft.py::test_training_stops_when_gradients_stay_broken_and_keeps_the_last_good_checkpoint,
  stages/test_sft.py::test_a_skipped_step_changes_no_weight
24 shapes that never come again: ../data/test_packing.py::test_lengths_rounded_up_leave_few_shapes
25 out of memory changes the batch: test_run.py::test_out_of_memory_halves_micro_batches_and_says_so,
  test_parallel.py::test_a_process_that_runs_out_of_memory_halves_what_it_does_at_once
26 Muon on fused matrices and tables:
  test_muon.py::test_queries_keys_and_values_of_one_matrix_are_orthogonalised_each_on_its_own,
  test_optim.py::test_each_parameter_gets_the_algorithm_made_for_it,
  test_roles.py::test_tables_of_places_types_and_distances_are_embeddings
27 an adapter with the rate of full fine-tuning:
  ../contracts/test_pitfalls.py::test_an_adapters_rate_is_not_that_of_all_weights
"""

from __future__ import annotations

import ast
import dataclasses
import re
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor

from danlu.train.adapter import lora_state
from danlu.train.lora import LoraConfig, add_lora
from danlu.train.settings import settle
from danlu.train.stages.classify import ClassifierConfig
from danlu.train.stages.dpo import DpoConfig
from danlu.train.stages.sft import SftConfig
from tests.train.chats import CONFIG, fresh, train

pytestmark = pytest.mark.usefixtures("one_thread")

TESTS = Path(__file__).resolve().parents[1] / "train"
NAMED = re.findall(r"([\w./]+\.py)::(test_\w+)", __doc__ or "")


def test_every_test_that_is_named_here_exists() -> None:
    rows = re.findall(r"^(\d+) ", __doc__ or "", re.MULTILINE)
    assert [int(row) for row in rows] == list(range(1, 28))
    tests: dict[str, set[str]] = {}
    for file, name in NAMED:
        if file not in tests:
            nodes = ast.parse((TESTS / file).read_text(encoding="utf-8")).body
            tests[file] = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
        assert name in tests[file], f"{file} has no {name}"


class Kept:
    """A tensor that going backward needs."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def test_a_micro_batch_leaves_nothing_for_the_next_to_carry(tiny_folder: Path, tmp_path: Path) -> None:
    model = fresh(tiny_folder)
    alive: weakref.WeakSet[Kept] = weakref.WeakSet()
    before_each: list[int] = []

    def pack(tensor: Tensor) -> Kept:
        kept = Kept(tensor)
        alive.add(kept)
        return kept

    model.network.register_forward_pre_hook(lambda *_: before_each.append(len(alive)))
    config = dataclasses.replace(CONFIG, steps=2, tokens_per_step=400, micro_tokens=1)
    most = 0

    def count(*_: object) -> None:
        nonlocal most
        most = max(most, len(alive))

    assert model.network.head is not None
    model.network.head.register_forward_hook(count)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        train(model, tmp_path / "work", config)
    assert most > 20, "there was something to carry"
    assert len(before_each) > 10
    assert set(before_each) == {0}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_adapters_learn_the_same_when_activations_are_computed_again(
    tiny_folder: Path, tmp_path: Path, precision: str
) -> None:
    assert CONFIG.lora is not None
    states: list[dict[str, Tensor]] = []
    for mode in ("none", "half", "full"):
        model = fresh(tiny_folder)
        if precision == "bf16":
            model.activation_dtype = torch.bfloat16  # the run lowers what is frozen
        train(model, tmp_path / mode / "work", dataclasses.replace(CONFIG, steps=6, recompute=mode))
        states.append({name: tensor.clone() for name, tensor in lora_state(model).items()})
    begun = fresh(tiny_folder)
    torch.manual_seed(3)  # as the run draws them
    add_lora(begun, CONFIG.lora)
    for name, tensor in lora_state(begun).items():
        assert all(torch.equal(state[name], states[0][name]) for state in states)
        assert (states[0][name] - tensor).abs().max() > 1e-4, f"{name} has not moved"


def test_an_adapters_rate_is_not_that_of_all_weights() -> None:
    """Each task's rate suits what trains: adapters want about ten times the rate, or more."""
    for kind in (SftConfig, ClassifierConfig, DpoConfig):
        full, adapter = (settle(kind(lora=lora)).optim.peak_rate for lora in (None, LoraConfig()))
        assert adapter >= 10 * full
