"""Feature directions: orthogonal or bounded in cosine, with one norm a feature; impossible ones are refused."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from toy.features.directions import cosine_matrix, make_directions, welch_bound

KEYS = jax.random.split(jax.random.key(0), 3)


def cosines(W: jax.Array) -> np.ndarray:
    unit = np.asarray(W, float) / np.linalg.norm(W, axis=1, keepdims=True)
    return unit @ unit.T - np.eye(len(unit))


@pytest.mark.parametrize(("n_features", "d_in"), [(20, 20), (20, 30), (1, 1)])
def test_directions_are_orthogonal_and_different_for_every_key(n_features: int, d_in: int) -> None:
    W_feat = make_directions(KEYS, n_features, d_in)
    assert W_feat.shape == (3, n_features, d_in)
    for W in W_feat:
        assert np.abs(cosines(W)).max() < 1e-5
    if d_in > 1:
        assert np.abs(W_feat[0] - W_feat[1]).max() > 0.1


def test_one_lane_of_many_is_the_dictionary_of_its_key() -> None:
    np.testing.assert_allclose(make_directions(KEYS, 5, 8)[1], make_directions(KEYS[1:2], 5, 8)[0], atol=1e-6)


def test_directions_point_everywhere_alike() -> None:
    W = np.asarray(make_directions(jax.random.split(KEYS[0], 4000), 2, 3))
    assert np.abs(W.mean(axis=0)).max() < 5 / np.sqrt(3 * 4000)
    np.testing.assert_allclose((W**2).mean(axis=0), 1 / 3, atol=0.03)


def test_each_feature_has_one_norm_close_to_1() -> None:
    norms = np.linalg.norm(make_directions(jax.random.split(KEYS[0], 200), 20, 20), axis=2)
    assert norms.std(axis=1).min() > 0.02  # a norm of its own for each feature
    assert norms.mean() == pytest.approx(1, abs=5 * 0.05 / np.sqrt(norms.size))
    assert norms.std() == pytest.approx(0.05, rel=0.1)
    np.testing.assert_allclose(np.linalg.norm(make_directions(KEYS, 5, 5, norm_std=0.0), axis=2), 1, rtol=1e-5)
    crowded = np.linalg.norm(make_directions(KEYS, 6, 4, max_cosine=0.7), axis=2)
    assert 0.005 < crowded.std() < 0.15


@pytest.mark.parametrize(("n_features", "d_in", "max_cosine"), [(20, 10, 0.4), (6, 4, 0.45), (5, 5, 0.1), (3, 1, 1.0)])
def test_superposed_directions_respect_the_largest_cosine(n_features: int, d_in: int, max_cosine: float) -> None:
    for W in make_directions(KEYS, n_features, d_in, max_cosine=max_cosine):
        assert np.abs(cosines(W)).max() <= max_cosine + 1e-5
        if n_features > d_in:
            assert np.abs(cosines(W)).max() >= welch_bound(n_features, d_in) - 1e-5


def test_the_welch_bound_is_met_by_the_best_known_arrangements() -> None:
    assert welch_bound(3, 2) == pytest.approx(1 / 2)  # three lines at 60°
    assert welch_bound(6, 3) == pytest.approx(1 / np.sqrt(5))  # the diagonals of an icosahedron
    assert welch_bound(5, 5) == welch_bound(4, 5) == welch_bound(1, 1) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_directions(KEYS, 21, 20), "21 features have no orthogonal .*superposition mode.*max_cosine"),
        (lambda: make_directions(KEYS, 20, 5, max_cosine=0.3), "max_cosine: .*Welch bound.*0.3 is impossible"),
        (lambda: make_directions(KEYS, 9, 3, max_cosine=0.503), "max_cosine: 0.503 was not reached in 5000 steps"),
        (lambda: make_directions(KEYS, 4, 4, max_cosine=0.0), "max_cosine: must be above 0, got 0.0"),
        (lambda: make_directions(KEYS, 4, 4, max_cosine=1.5), "max_cosine: must be at most 1, got 1.5"),
        (lambda: make_directions(KEYS, 4, 4, max_cosine=float("nan")), "max_cosine: must be finite, got nan"),
        (lambda: make_directions(KEYS, 0, 4), "n_features: must be at least 1, got 0"),
        (lambda: make_directions(KEYS, 1, 0), "d_in: must be at least 1, got 0"),
        (lambda: make_directions(KEYS, 4, 4, norm_std=-1.0), "norm_std: must not be negative"),
        (lambda: make_directions(KEYS, 4, 10**9), "d_in: a matrix of 1,000,000,000 × 1,000,000,000 numbers"),
        (lambda: make_directions(KEYS, 10**9, 10, max_cosine=1.0), "n_features and d_in: a matrix of 1,000,000,000 ×"),
        (lambda: cosine_matrix(np.zeros((20_000, 1)), np.zeros((20_000, 1))), "cosines: a matrix of 20,000 × 20,000"),
    ],
)
def test_directions_that_cannot_be_are_refused_with_the_way_out(make: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


def test_the_cosine_of_a_row_of_zeros_is_0() -> None:
    a = np.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(cosine_matrix(a, np.array([[1.0, 0.0], [-6.0, -8.0]])), [[0.6, -1.0], [0.0, 0.0]])
    assert jnp.isfinite(cosine_matrix(a, a)).all()
