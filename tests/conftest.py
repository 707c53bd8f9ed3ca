"""Every test starts from an empty param store, a fixed seed and torch's own default dtype."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyro
import pytest
import torch


def pytest_configure() -> None:
    # Without a GPU, Triton's interpreter runs its kernels; it must know before they are imported.
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
    # Parallel workers share the cores: more threads in each would only wait for one another.
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
        torch.set_num_threads(1)
        # A pool of processes to compile in would too, and each imports torch first.
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


#: Files whose tests train models or start processes, most of them for longer than a second.
SLOW_FILES = {
    "test_automatic.py",
    "test_cli.py",
    "test_commands.py",
    "test_compiled.py",
    "test_mixed_gaps.py",
    "test_missing.py",
    "test_readme.py",
    "test_reverse_kl.py",
    "test_triton.py",
    "test_tutorials.py",
}

#: Files whose tests compute what is given; else tests/infer, and the examples of pyro_naf/infer,
#: are slow.
QUICK_FILES = {"test_chains.py", "test_layout.py", "test_psis.py", "test_verdict.py"}

#: Tests of other files that take longer than a second.
SLOW_TESTS = {
    "pyro_naf.density.estimator.FlowDensity",
    "test_a_captured_density_and_a_captured_fresh_sample_are_right_on_other_points",
    "test_a_column_that_others_determine_is_named",
    "test_a_context_is_standardised_and_followed",
    "test_a_damaged_model_is_the_model_or_refused",
    "test_a_damaged_table_is_read_or_refused",
    "test_a_density_is_exported_for_any_number_of_rows",
    "test_a_density_lies_within_its_bounds_and_integrates_to_one",
    "test_a_flow_with_a_base_of_ts_learns_tails_that_one_of_normals_misses",
    "test_a_fused_inverse_waits_for_the_device_as_often_for_many_dimensions_as_for_few",
    "test_a_grid_search_chooses_the_learning_rate",
    "test_a_guide_for_eight_schools_finds_the_posterior",
    "test_a_guide_with_heavy_tails_fits_heavy_tails",
    "test_a_model_put_together_from_damaged_parts_is_of_the_form_or_refused",
    "test_a_pandas_frame_goes_in_and_comes_out",
    "test_a_sentinel_costs_nothing_and_is_named",
    "test_a_table_of_all_kinds_is_fitted_scored_by_name_and_drawn",
    "test_an_amortised_guide_has_the_conjugate_posterior_of_each_row",
    "test_arrays_give_arrays_and_tensors_of_any_dtype_tensors",
    "test_by_default_heavy_tails_are_met",
    "test_classes_and_integers_beside_a_flow_are_answered",
    "test_compiled_flow_agrees_with_the_eager_one",
    "test_compiled_for_a_level_the_loops_give_the_numbers_of_the_formula",
    "test_damaged_data_of_a_model_are_read_or_refused",
    "test_density_integrates_to_one",
    "test_drawing_leaves_pyplot_alone",
    "test_draws_are_in_the_units_of_the_data",
    "test_draws_pass_a_two_sample_test_as_often_as_fresh_data",
    "test_draws_pass_a_two_sample_test_on_real_data",
    "test_files_hold_the_draws_the_guide_and_the_summary",
    "test_float32_error_is_that_of_rounding_the_inputs",
    "test_history_and_dtypes_come_back",
    "test_import_is_silent_and_draws_nothing_from_the_generators",
    "test_import_leaves_all_alone_replaces_nothing_and_may_be_repeated",
    "test_inverse_of_a_trained_flow_gives_back_the_data",
    "test_inverse_residual_after_training_on_sharp_modes_is_at_rounding_level",
    "test_it_learns_a_gaussian_to_its_entropy",
    "test_it_learns_sharp_modes_that_all_dimensions_share",
    "test_levels_of_a_category_keep_their_order_and_may_have_no_row",
    "test_likelihood_is_in_the_units_of_the_data_and_close_to_the_truth",
    "test_log_prob_has_the_gradient_of_the_data_units",
    "test_old_names_of_arguments_are_taken_with_a_warning_that_names_the_new",
    "test_other_ways_to_hold_a_table_are_read_as_what_they_hold",
    "test_questions_to_a_flow_with_spikes_are_answered_by_its_joint_law",
    "test_rebuilt_bsds300_scores_as_published_under_a_gaussian",
    "test_scikit_learn_clones_it_and_chooses_its_options",
    "test_score_samples_are_the_log_density_as_an_array",
    "test_second_derivatives_of_the_inverse_are_right",
    "test_second_derivatives_of_the_log_density_are_right",
    "test_tables_that_do_not_fit_the_schema_are_refused",
    "test_the_law_of_a_zero_inflated_column_is_learnt",
    "test_the_site_is_built_without_a_warning_and_is_whole",
    "test_training_raises_the_elbo",
    "test_weighted_answers_are_those_of_the_closed_form",
    "test_without_a_limit_the_budget_is_2000_steps_at_least",
}


#: Long tests whose parts, or other parameters, are checked in less: ``--nightly`` runs them.
NIGHTLY = {
    "test_a_captured_density_and_a_captured_fresh_sample_are_right_on_other_points[ddsf-2]",
    "test_a_captured_density_and_a_captured_fresh_sample_are_right_on_other_points[dsf-attention]",
    "test_a_flow_is_trained_where_there_is_time_for_its_steps[0.04-AutoDSFNormal]",
    "test_a_flow_that_has_nothing_to_add_stays_as_it_started",
    "test_a_guide_of_a_blocked_model_is_refined_with_its_discrete_latents_summed_out",
    "test_a_mode_far_away_is_found_and_chains_in_both_are_not_accused[40-5.0]",
    "test_a_mode_far_away_is_found_and_chains_in_both_are_not_accused[5-15.0]",
    "test_a_model_is_taken_as_nuts_takes_it[mixes]",
    "test_a_model_is_taken_as_nuts_takes_it[unbatched]",
    "test_a_model_is_taken_as_nuts_takes_it[unplated]",
    "test_a_sentinel_costs_nothing_and_is_named",
    "test_anomaly_scores_are_p_values[auto]",
    "test_any_memory_order_and_shape_gives_the_same[triton-2]",
    "test_data_sets_in_rows_are_corrected_together",
    "test_draws_are_exact_where_the_guide_is_not[neutra-16-75]",
    "test_draws_have_the_shapes_of_sites_and_are_those_of_the_seed[neutra]",
    "test_float32_is_as_right_as_the_plain_formula_for_sharp_parameters[16-2-True]",
    "test_float32_is_as_right_as_the_plain_formula_for_sharp_parameters[4-2-False]",
    "test_float32_is_right_to_a_few_roundings_within_ten[triton-4-1]",
    "test_float32_is_right_to_a_few_roundings_within_ten[triton-4-4]",
    "test_gradients_pass_gradcheck[triton-2]",
    "test_higher_and_batched_derivatives_of_a_flow_are_those_of_the_plain_formula[triton-2-natural]",
    "test_inverse_converges_for_sharp_parameters[4-2-False]",
    "test_inverse_is_that_of_find_root[4-3-dtype0]",
    "test_kernels_compile_for_nvidia_gpus",
    "test_lanes_in_the_tails_and_on_plateaus_are_right_beside_ordinary_ones[triton-4]",
    "test_log_slope_is_the_log_of_the_derivative[triton-4]",
    "test_models_with_enumerated_latents_are_captured[mixture-dsf]",
    "test_neutra_needs_a_tenth_of_the_leapfrog_steps_of_nuts_on_a_narrow_model",
    "test_neutra_runs_several_chains_at_once[affine]",
    "test_neutra_through_the_guide_samples_the_posterior",
    "test_on_gaussian_rows_the_gaussian_is_as_good_as_kept",
    "test_one_missing_cell_is_enough_for_gaps_to_be_scored",
    "test_random_calls_are_right_and_without_a_report_of_the_sanitizers[avx2]",
    "test_refine_is_calibrated_where_a_mean_field_guide_is_not",
    "test_refinement_comes_near_the_evidence[beta_bernoulli]",
    "test_refinement_comes_near_the_evidence[coefficient_vector]",
    "test_refinement_comes_near_the_evidence[missing_by_obs_mask]",
    "test_refinement_comes_near_the_evidence[module_linear]",
    "test_refinement_comes_near_the_evidence[poisson]",
    "test_refinement_starts_from_the_fitted_guide[ddsf-AutoDiagonalNormal]",
    "test_refinement_starts_from_the_fitted_guide[ddsf-AutoLaplaceApproximation]",
    "test_refinement_starts_from_the_fitted_guide[ddsf-AutoLowRankMultivariateNormal]",
    "test_snippets_run_one_after_the_other_in_one_notebook[README.md]",
    "test_the_elbo_trains_a_guide_for_any_gaussian_linear_data_set",
    "test_the_joint_density_is_that_of_single_runs[hmm_vectorised]",
    "test_training_goes_on_from_a_param_store_loaded_under_the_guide[CompiledSVI-small_ddsf]",
    "test_training_raises_the_elbo[ddsf-2]",
    "test_training_raises_the_elbo[dsf-pyro]",
    "test_training_stops_on_a_plateau",
    "test_two_processes_reach_the_likelihood_of_one",
    "test_value_log_slope_and_gradients_are_those_of_the_plain_formula[1-2-dtype1]",
    "test_value_log_slope_and_gradients_are_those_of_the_plain_formula[16-2-dtype1]",
    "test_value_log_slope_and_gradients_are_those_of_the_plain_formula[20-2-dtype0]",
    "test_value_log_slope_and_gradients_are_those_of_the_plain_formula[20-2-dtype1]",
    "test_value_log_slope_and_gradients_are_those_of_the_plain_formula[40-2-dtype0]",
    "test_value_log_slope_and_gradients_are_those_of_the_plain_formula[triton-dtype0-4]",
    "test_value_rises_and_gradients_are_finite_out_to_1e20[triton-4]",
    "test_wider_draws_fit_the_tails_that_khat_depends_on",
    *(
        f"test_notebook_runs_with_reduced_settings_and_prints_no_warning[{notebook}]"
        for notebook in (
            "01_from_planar_to_neural",
            "02_expressiveness",
            "03_svi_refinement",
            "04_guide_components",
            "05_density_estimation",
            "06_hierarchical_models",
        )
    ),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--nightly``."""
    parser.addoption("--nightly", action="store_true", help="run the longest tests as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests that are slow, as measured; ``-m "not slow"`` leaves them out.

    The longest of them are skipped without ``--nightly``.
    """
    for item in items:
        if item.name in NIGHTLY and not config.getoption("nightly"):
            item.add_marker(pytest.mark.skip(reason="--nightly runs it"))
        in_infer = item.path.parent.name == "infer" and item.path.name not in QUICK_FILES
        name, _, parameters = item.name.partition("[")
        listed = item.path.name in SLOW_FILES or name in SLOW_TESTS
        if in_infer or listed or "triton" in parameters:  # whose interpreter is slow
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def clean_state() -> Iterator[None]:
    dtype = torch.get_default_dtype()
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    with pyro.validation_enabled():
        yield
    torch.set_default_dtype(dtype)
    pyro.clear_param_store()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the numerical tests run: PYRO_NAF_DEVICE, by default the CPU."""
    return torch.device(os.environ.get("PYRO_NAF_DEVICE", "cpu"))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of reference data that PYRO_NAF_DATA names; without it the test is skipped."""
    folder = os.environ.get("PYRO_NAF_DATA")
    if not folder:
        pytest.skip("set PYRO_NAF_DATA to the folder of reference data to run this test")
    return Path(folder)
