"""How far a model's probabilities can be trusted: temperature and scale, expected calibration error, Brier score.

A model is calibrated where, of the answers that it gives with a probability of 0.8, 80 % are right.
"""

import numpy as np
from scipy.optimize import minimize, minimize_scalar

from utils.predictor.model import softmax

NUM_BINS = 15
LARGEST_LOG_TEMPERATURE = 4.0
CHANCE_DRAWS = 50


def fit_temperature(logits: np.ndarray, true: np.ndarray) -> float:
    """The temperature by which logits are to be divided: it minimizes the mean negative log likelihood of `true`.

    Guo et al. 2017, On Calibration of Modern Neural Networks (arXiv 1706.04599), section 4.2. No answer changes, as the
    order of a row's logits stays.

    Args:
        logits: float [rows, labels].
        true: label ids, int [rows].
    """
    scores = logits.astype(np.float64)

    def loss(log_temperature: float) -> float:
        return -log_likelihood(scores / np.exp(log_temperature), true).mean()

    bounds = (-LARGEST_LOG_TEMPERATURE, LARGEST_LOG_TEMPERATURE)
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x))


def fit_logit_scale(logits: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """What a row's logits are to be multiplied by: the first number, and the second times the row's margin.

    A classifier's logits stop growing where it is sure. After division by one temperature its answers of 0.6 to 0.9 are
    therefore right more rarely than that, and those above 0.95 more often; a factor that grows with the distance of the
    two largest logits mends both. It is a temperature that depends on the row (Tomani et al. 2022, Parameterized
    Temperature Scaling, arXiv 2102.12182), of two numbers in the place of a network, so that some hundred rows suffice.
    They maximize the likelihood of `true`. No answer changes, as no factor is below 0. The second is 0 where it would
    not make other rows more likely, by the criterion of Akaike (1974): the first is then 1 / `fit_temperature`, else no
    less than half of that, as few rows say little of small margins.

    Args:
        logits: float [rows, labels], of two labels or more.
        true: label ids, int [rows].
    """
    scores, temperature = logits.astype(np.float64), fit_temperature(logits, true)
    by_margin = scaled_logits(scores, (0.0, 1.0))
    divisor, of_margin = _with_or_alone(by_margin, scores, temperature, true, least=0.5 / temperature, least_gain=1)
    return 1 / divisor, of_margin


def scaled_logits(logits: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """Logits [rows, labels] by `scale`, as of `fit_logit_scale`."""
    second, first = np.partition(logits, (-2, -1), axis=1)[:, -2:].T
    return logits * (scale[0] + scale[1] * (first - second))[:, None]


def pool_weights(logits: np.ndarray, true: np.ndarray, least_of_last: float = 0.0) -> np.ndarray:
    """What each of several models is to count where their logits are added up, float [models].

    A logarithmic opinion pool (Genest and Zidek 1986; Heskes 1998): the softmax of the weighted sum says how probable
    each label is, and the weights, none below 0, minimize the mean negative log likelihood of `true`. So few numbers
    are fitted that some hundred rows suffice.

    Args:
        logits: float [models, rows, labels].
        true: label ids, int [rows].
        least_of_last: the last model's weight is no less.
    """
    scores = logits.astype(np.float64)
    of_true = scores[:, np.arange(len(true)), true].mean(1)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        summed = np.einsum("m,mrl->rl", weights, scores)
        probabilities = softmax(summed)
        log_sums = np.logaddexp.reduce(summed, axis=1)
        gradient = np.einsum("mrl,rl->m", scores, probabilities) / len(true) - of_true
        return float(log_sums.mean() - weights @ of_true), gradient

    num_models = len(logits)
    bounds = [(0, None)] * (num_models - 1) + [(least_of_last, None)]
    fitted = minimize(loss, np.full(num_models, 1 / num_models), jac=True, bounds=bounds)
    return fitted.x


def pooled_probabilities(logits: np.ndarray, true: np.ndarray) -> np.ndarray:
    """What several models together say of rows, as `pool_weights` are fitted on the same rows: [rows, labels]."""
    return softmax(np.einsum("m,mrl->rl", pool_weights(logits, true), logits.astype(np.float64)))


def cascade_weights(logits: list[np.ndarray], true: np.ndarray) -> list[tuple[float, float]]:
    """The temperature of each stage of a cascade, and what the logits of the stages before it count beside its own.

    A stage that is asked on has the answers of all before it at hand, and together they are right more often than it is
    alone (Wang et al. 2022, Wisdom of Committees, arXiv 2012.01988). Stage by stage, the two numbers maximize the
    likelihood of `true`. The second is 0 for the first stage, and where it is worth no more than a number that is
    fitted gains by chance, by the Bayesian information criterion (Schwarz 1978): small models that learned all they
    know from the stage add nothing to it.

    Args:
        logits: of each stage, fastest first, float [rows, labels].
        true: label ids, int [rows].
    """
    weights = [(fit_temperature(logits[0], true), 0.0)]
    least = float(np.exp(-LARGEST_LOG_TEMPERATURE))  # as of `fit_temperature`
    for number in range(1, len(logits)):
        before, own = cascade_logits(logits[:number], weights)[-1], logits[number].astype(np.float64)
        weights.append(
            _with_or_alone(before, own, fit_temperature(own, true), true, least, least_gain=0.5 * np.log(len(true)))
        )
    return weights


def _with_or_alone(
    more: np.ndarray, own: np.ndarray, temperature: float, true: np.ndarray, least: float, least_gain: float
) -> tuple[float, float]:
    """What logits are to be divided by, and the weight of more logits that are added to them, all [rows, labels].

    Alone they are divided by `temperature`, and the weight is 0, where both together do not raise the logarithm of the
    likelihood of `true` by `least_gain`. Together, they are multiplied by no less than `least`.
    """
    of_more, of_own = pool_weights(np.stack([more, own]), true, least_of_last=least).tolist()
    gains = log_likelihood(of_more * more + of_own * own, true) - log_likelihood(own / temperature, true)
    return (1 / of_own, of_more) if gains.sum() > least_gain else (temperature, 0.0)


def cascade_logits(logits: list[np.ndarray], weights: list[tuple[float, float]]) -> list[np.ndarray]:
    """What each stage says together with those before it, as `utils.predictor` adds them up: [rows, labels] each.

    Args:
        weights: as of `cascade_weights`.
    """
    combined: list[np.ndarray] = []
    for own, (temperature, of_before) in zip(logits, weights, strict=True):
        combined.append(own / temperature + of_before * combined[-1] if combined else own / temperature)
    return combined


def log_likelihood(logits: np.ndarray, true: np.ndarray) -> np.ndarray:
    """The logarithm of the probability of each row's true label, [rows]."""
    largest = logits.max(1)
    log_sums = largest + np.log(np.exp(logits - largest[:, None]).sum(1))
    return logits[np.arange(len(true)), true] - log_sums


def expected_calibration_error(logits: np.ndarray, true: np.ndarray, num_bins: int = NUM_BINS) -> float:
    """How far the probability of the answers is from the share of them that is right, from 0 to 1.

    Rows are put into `num_bins` bins of equal width by their answer's probability; the distances of the bins are
    weighted by their numbers of rows (Naeini et al. 2015; Guo et al. 2017, section 2).
    """
    confidence = softmax(logits.astype(np.float64)).max(1)
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    gaps = np.bincount(bins, (logits.argmax(1) == true) - confidence, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(true))


def calibration_error_by_chance(logits: np.ndarray) -> float:
    """The mean `expected_calibration_error` of as many rows if the probabilities of the answers were exact.

    It is not 0, as few rows are in a bin: about 0.02 of 1,000 rows. Only what an error has above it says something.
    """
    confidence, generator = softmax(logits.astype(np.float64)).max(1), np.random.default_rng(0)
    answers = logits.argmax(1)
    draws = [generator.random(len(answers)) < confidence for _ in range(CHANCE_DRAWS)]
    return float(np.mean([expected_calibration_error(logits, np.where(right, answers, -1)) for right in draws]))


def brier_score(logits: np.ndarray, true: np.ndarray) -> float:
    """The squared distance of a row's probabilities from 1 for its true label and 0 for the others, from 0 to 2.

    Summed over labels, mean over rows (Brier 1950): with two labels twice what some libraries call by this name.
    """
    errors = softmax(logits.astype(np.float64))
    errors[np.arange(len(true)), true] -= 1
    return float((errors**2).sum(1).mean())
