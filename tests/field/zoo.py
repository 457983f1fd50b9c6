"""All kinds of field: those that a trace holds, and those that only a call of the field itself does."""

from __future__ import annotations

from collections.abc import Callable

from modules import ACTIVATIONS, COMPLEX, CONVOLUTIONS, Case
from published import CASES
from untraced import UNTRACED

__all__ = ["CASES", "EVERY", "QUICK", "UNTRACED"]

EVERY: dict[str, Callable[[], Case]] = CASES | {name: make for name, (make, _) in UNTRACED.items()}

# What takes long, or differs from others by little more than its name, is left to runs with `slow`.
_VARIANTS = {*ACTIVATIONS, *CONVOLUTIONS, *(f"complex, {name}" for name in COMPLEX)}
_VARIANTS -= {"CELU", "GLU", "LogSoftmax", "PReLU", "ReLU in place", "Softplus", "Softmax"}
_VARIANTS -= {"conv, stride", "conv, reflect", "max pooling, overlapping", "upsampling, bilinear"}
_VARIANTS -= {"complex, parameters", "complex, shapes"}
_LONG = {
    *("conv_with_time", "determinants", "eigenvalues", "exact_divergence", "ffjord_of_images"),
    *("fourier_neural_operator", "interacting_particles", "lagrangian", "least_squares", "matrix_exponential"),
    *("multihead_attention", "norms_of_matrices", "norms_of_rows", "old_spectral_norm", "old_weight_norm"),
    *("order_of_the_batch", "orthogonal_cayley", "orthogonal_householder", "special_functions", "transformer_layer"),
    *("transforms", "transforms_in_the_plane", "triangles", "sorting", "scaled_dot_product"),
    *("attitude", "causal_rotary_attention", "conservation_law", "convex_potential", "egnn", "gat_dense"),
    *("hodgkin_huxley", "kan", "kuramoto_sivashinsky", "learned_stencils", "linear_attention", "message_passing"),
    *("nonlinear_schroedinger", "orthogonal_dynamics", "recurrent_over_features", "schnet", "set_transformer"),
    *("sinkhorn_attention", "slot_attention", "springs", "mlp_mixer", "perceiver", "koopman"),
    *("filled_from_zeros", "fno_with_complex_weights", "neural_diffusion", "lstm_cell", "extrema", "flocking"),
    *("singular_values", "orthogonal_factors", "spectral_derivatives", "running", "state_space", "systems"),
    *("selective_state_space", "double_pendulum", "gray_scott", "fixed_rounds_of_an_equilibrium", "bounded_domain"),
    *("cart_pole", "separable_hamiltonian", "radial_basis_functions", "kalman_bucy", "rotary_by_complex_numbers"),
}
QUICK = set(CASES) - _VARIANTS - _LONG
