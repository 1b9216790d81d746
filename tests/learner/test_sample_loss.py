import numpy as np
import pytest
import scipy.sparse as sp

from spark_fm import FactorizationMachine
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.metrics import loss_sum
from spark_fm.learner.state import initial_state
from spark_fm.learner.training import null_model_loss, sample_loss


@pytest.mark.parametrize("n_features", [20, 50_000], ids=["small table", "large table"])
def test_the_loss_of_the_first_rows_is_the_same_formula_s_whatever_the_table(n_features):
    rng = np.random.default_rng(0)
    X = sp.random(30, n_features, density=100 / n_features / 30 * 3, format="csr", random_state=1)
    labels = rng.integers(0, 2, 30).astype(np.float32)
    weights = rng.random(30).astype(np.float32)
    rows = CsrBatch.from_matrix(X, labels=labels, weights=weights)
    spec = FactorizationMachine(numFactors=4, factorsInitSigma=0.5)._spec()
    state = initial_state(spec, np.ones(n_features, int), label_mean=0.3)

    loss, weight = sample_loss(state, rows, spec)

    table = state.parameters().astype(np.float64)
    dense = X.toarray()
    sums = dense @ table[:, :4]
    squares = dense**2 @ table[:, :4] ** 2
    scores = state.bias[0] + dense @ table[:, 4] + 0.5 * (sums**2 - squares).sum(1)
    expected = weights @ (np.logaddexp(0, scores) - labels * scores)
    np.testing.assert_allclose([loss, weight], [expected, weights.sum()], rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "labels"),
    [("binary_classifier", [0, 1, 1]), ("regressor", [-2.5, 0, 7])],
    ids=["logistic", "squared"],
)
def test_the_loss_of_no_model_is_the_losses_of_scores_of_zero(kind, labels):
    weights, zeros = np.array([0.5, 0, 2], np.float32), np.zeros(3, np.float32)
    rows = CsrBatch.from_matrix(sp.csr_matrix((3, 4)), labels=labels, weights=weights)
    spec = FactorizationMachine(predictorType=kind, numFactors=2)._spec()

    expected = loss_sum(spec.loss, zeros, rows.labels, rows.weights)
    assert null_model_loss(rows, spec) == pytest.approx(expected, rel=1e-7)
