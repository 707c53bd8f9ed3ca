"""Models with discrete latents, which NUTS sums out."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.ops.indexing import Vindex
from scipy import stats
from scipy.special import gammaln, logsumexp
from torch import Tensor
from zoo_case import built, case, one, quadrature, real, whole

_rng = np.random.default_rng(4)
POINTS = np.array([-2.1, -1.7, 1.2, 2.0, 1.6])
T = np.linspace(-1, 1, 5)
LINE = 0.5 + T + np.array([0.1, -0.2, 3.0, 0.0, 0.2])
ZEROS = np.array([0, 3, 0, 0, 5, 2])
DISASTERS = np.array([4.0, 5, 3, 6, 1, 0, 1, 2])
TUNES = np.array([[1, 0, 0, 1], [0, 0, 1, 1]])


@case(lambda: real(POINTS), discrete=("z",))
@config_enumerate
def mixture(x: Tensor) -> None:
    """Pyro's tutorial on mixtures, with a scale for each part."""
    weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
    with pyro.plate("components", 2):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("obs", dist.Normal(locs[z], scale[z]), obs=x)


def _two_parts() -> float:
    def log_density(p: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        logs = stats.norm.logpdf(a, -2) + stats.norm.logpdf(b, 2)
        for x in POINTS:
            parts = p * stats.norm.pdf(x, a, 0.7), (1 - p) * stats.norm.pdf(x, b, 0.7)
            logs = logs + np.log(sum(parts))
        return logs

    return quadrature(
        log_density, np.linspace(0, 1, 101), np.linspace(-6, 4, 101), np.linspace(-4, 6, 101)
    )


@case(lambda: real(POINTS), discrete=("assignment",), evidence=_two_parts)
def mixture_marked(x: Tensor) -> None:
    """Enumeration asked for at the site."""
    p = pyro.sample("p", dist.Uniform(0.0, 1.0))
    a = pyro.sample("a", dist.Normal(-2.0, 1.0))
    b = pyro.sample("b", dist.Normal(2.0, 1.0))
    with pyro.plate("data", len(x)):
        k = pyro.sample("assignment", dist.Bernoulli(p), infer={"enumerate": "parallel"})
        pyro.sample("obs", dist.Normal(k * a + (1 - k) * b, 0.7), obs=x)


@case(lambda: real(POINTS), evidence=_two_parts)
def mixture_same_family(x: Tensor) -> None:
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    a = pyro.sample("a", dist.Normal(-2.0, 1.0))
    b = pyro.sample("b", dist.Normal(2.0, 1.0))
    parts = dist.Normal(torch.stack([a, b]), 0.7)
    which = dist.Categorical(torch.stack([p, 1 - p]))
    pyro.sample("obs", dist.MixtureSameFamily(which, parts).expand([len(x)]).to_event(1), obs=x)


@case(lambda: real(POINTS), discrete=("z",))
def mixture_of_pyro_tests(data: Tensor) -> None:
    """test_gaussian_mixture_model of Pyro's tests of NUTS: no mark at all."""
    mix = pyro.sample("phi", dist.Dirichlet(torch.tensor([1.0, 3.0])))
    with pyro.plate("num_clusters", 2):
        means = pyro.sample("cluster_means", dist.Normal(torch.arange(2.0), 1.0))
    with pyro.plate("data", data.shape[0]):
        assignments = pyro.sample("z", dist.Categorical(mix))
        pyro.sample("obs", dist.Normal(means[assignments], 1.0), obs=data)


def _bernoulli_latent() -> float:
    """Given y_prob each row is a Bernoulli of its own mixture."""

    def log_density(p: np.ndarray) -> np.ndarray:
        logs = stats.beta.logpdf(p, 1, 1)
        for x in POINTS:
            parts = p * stats.norm.pdf(x, 1), (1 - p) * stats.norm.pdf(x, 0)
            logs = logs + np.log(sum(parts))
        return logs

    return quadrature(log_density, np.linspace(0, 1, 1001))


@case(lambda: real(POINTS), discrete=("y",), evidence=_bernoulli_latent)
def bernoulli_latent(data: Tensor) -> None:
    """test_bernoulli_latent_model of Pyro's tests of NUTS."""
    y_prob = pyro.sample("y_prob", dist.Beta(1.0, 1.0))
    with pyro.plate("data", data.shape[0]):
        y = pyro.sample("y", dist.Bernoulli(y_prob))
        pyro.sample("z", dist.Normal(y, 1.0), obs=data)


@case(lambda: real(POINTS), discrete=tuple(f"x_{t}" for t in range(5)))
def hmm_markov(data: Tensor) -> None:
    """test_gaussian_hmm of Pyro's tests of NUTS."""
    with pyro.plate("states", 2):
        transition = pyro.sample("transition", dist.Dirichlet(torch.ones(2)))
        means = pyro.sample("means", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0))
        noise = pyro.sample("noise", dist.LogNormal(0.0, 0.5))
    x = torch.tensor(0)
    for t in pyro.markov(range(len(data))):
        x = pyro.sample(f"x_{t}", dist.Categorical(transition[x]), infer={"enumerate": "parallel"})
        pyro.sample(f"y_{t}", dist.Normal(means[x], noise[x]), obs=data[t])


@case(lambda: whole(TUNES), discrete=tuple(f"x_{t}" for t in range(4)), slow=True)
@config_enumerate
def hmm_vectorised(tunes: Tensor) -> None:
    """Two sequences side by side, with Vindex, as in Pyro's example hmm.py."""
    px = pyro.sample("px", dist.Dirichlet(0.9 * torch.eye(2) + 0.1).to_event(1))
    py = pyro.sample("py", dist.Beta(0.5, 0.9).expand([2]).to_event(1))
    with pyro.plate("sequences", len(tunes), dim=-1):
        x = 0
        for t in pyro.markov(range(tunes.shape[1])):
            x = pyro.sample(f"x_{t}", dist.Categorical(Vindex(px)[x]))
            pyro.sample(f"y_{t}", dist.Bernoulli(Vindex(py)[..., x]), obs=tunes[:, t].type_as(py))


LENGTHS = np.array([3, 2])


@case(lambda: whole(TUNES, LENGTHS), discrete=tuple(f"x_{t}" for t in range(3)))
@config_enumerate
def hmm_lengths(tunes: Tensor, lengths: Tensor) -> None:
    """Sequences of unequal length by poutine.mask, tones in a plate of their own."""
    stay = pyro.sample("stay", dist.Beta(2.0, 1.0))
    with pyro.plate("tones", 2, dim=-1):
        rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
    with pyro.plate("sequences", len(tunes), dim=-2):
        lengths = lengths.unsqueeze(-1)
        x = torch.zeros(len(tunes), 1, dtype=torch.long)
        for t in pyro.markov(range(int(lengths.max()))):
            with poutine.mask(mask=t < lengths):
                p = torch.where(x == 1, stay, 1 - stay)
                x = pyro.sample(f"x_{t}", dist.Bernoulli(p)).long()
                with pyro.plate(f"tones_{t}", 2, dim=-1):
                    seen = tunes[:, t : t + 2]
                    pyro.sample(f"y_{t}", dist.Poisson(rate * (1 + x)), obs=seen)


def _changepoint() -> float:
    """Gamma-Poisson on either side of the change, summed over where it is."""

    def block(counts: np.ndarray) -> float:
        a, n = 2.0, len(counts)
        rest = gammaln(a + counts.sum()) - gammaln(a) - (a + counts.sum()) * np.log(1.0 + n)
        return float(rest - gammaln(counts + 1).sum())

    logs = [block(DISASTERS[:k]) + block(DISASTERS[k:]) for k in range(8)]
    return float(logsumexp(logs) - np.log(8))


@case(lambda: real(DISASTERS), discrete=("when",), evidence=_changepoint)
@config_enumerate
def changepoint(count: Tensor) -> None:
    """Coal-mining disasters."""
    early = pyro.sample("early", dist.Gamma(2.0, 1.0))
    late = pyro.sample("late", dist.Gamma(2.0, 1.0))
    when = pyro.sample("when", dist.Categorical(torch.ones(len(count)) / len(count)))
    years = torch.arange(len(count))
    rate = torch.where(years < when.unsqueeze(-1), early, late)
    pyro.sample("count", dist.Poisson(rate).to_event(1), obs=count)


def _zero_inflated() -> float:
    def log_density(gate: np.ndarray, rate: np.ndarray) -> np.ndarray:
        logs = stats.gamma.logpdf(rate, 2, scale=2) + 0 * gate
        for n in ZEROS:
            logs = logs + np.log(gate * (n == 0) + (1 - gate) * stats.poisson.pmf(n, rate))
        return logs

    return quadrature(log_density, np.linspace(1e-6, 1 - 1e-6, 401), np.linspace(1e-6, 16, 401))


@case(lambda: real(ZEROS), discrete=("absent",), evidence=_zero_inflated)
@config_enumerate
def zero_inflated_by_hand(count: Tensor) -> None:
    gate = pyro.sample("gate", dist.Uniform(0.0, 1.0))
    rate = pyro.sample("rate", dist.Gamma(2.0, 0.5))
    with pyro.plate("rows", len(count)):
        absent = pyro.sample("absent", dist.Bernoulli(gate))
        pyro.sample("count", dist.Poisson(rate * (1 - absent) + 1e-12), obs=count)


@case(lambda: real(T, LINE), discrete=("outlier",))
def outliers(t: Tensor, y: Tensor) -> None:
    """Hogg's straight line: each row may be an outlier."""
    b = pyro.sample("b", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    share = pyro.sample("share", dist.Beta(1.0, 5.0))
    wide = pyro.sample("wide", dist.HalfNormal(5.0))
    with pyro.plate("rows", len(t)):
        bad = pyro.sample("outlier", dist.Bernoulli(share), infer={"enumerate": "parallel"})
        sd = 0.2 + wide * bad
        pyro.sample("y", dist.Normal(b[0] + b[1] * t, sd), obs=y)


CAUGHT = np.array([[1, 1, 0], [1, 0, 1]])


@case(lambda: real(CAUGHT), discrete=("z_0", "z_1", "z_2"))
def capture_recapture(capture_history: Tensor) -> None:
    """Cormack-Jolly-Seber, the first model of Pyro's example capture_recapture."""
    N, occasions = capture_history.shape
    phi = pyro.sample("phi", dist.Uniform(0.0, 1.0))
    rho = pyro.sample("rho", dist.Uniform(0.0, 1.0))
    with pyro.plate("animals", N, dim=-1):
        z = torch.ones(N)
        first_capture_mask = torch.zeros(N).bool()
        for t in pyro.markov(range(occasions)):
            with poutine.mask(mask=first_capture_mask):
                mu_z_t = first_capture_mask.float() * phi * z + (1 - first_capture_mask.float())
                z = pyro.sample(f"z_{t}", dist.Bernoulli(mu_z_t), infer={"enumerate": "parallel"})
                pyro.sample(f"y_{t}", dist.Bernoulli(rho * z), obs=capture_history[:, t])
            first_capture_mask |= capture_history[:, t].bool()


VISITS = np.array([[1.0, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0]])


def _occupancy() -> float:
    def log_density(psi: np.ndarray, p: np.ndarray) -> np.ndarray:
        logs = 0.0
        for row in VISITS:
            there = psi * p ** row.sum() * (1 - p) ** (3 - row.sum())
            logs = logs + np.log(there + (1 - psi) * (not row.any()) + 1e-300)
        return logs

    axis = np.linspace(0, 1, 801)
    return quadrature(log_density, axis, axis)


@case(lambda: real(VISITS), discrete=("there",), evidence=_occupancy)
@config_enumerate
def occupancy(visits: Tensor) -> None:
    """A discrete latent in the outer of two plates."""
    psi = pyro.sample("psi", dist.Beta(1.0, 1.0))
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    sites = pyro.plate("sites", visits.shape[0], dim=-2)
    with sites:
        there = pyro.sample("there", dist.Bernoulli(psi))
        with pyro.plate("visits", visits.shape[1], dim=-1):
            pyro.sample("seen", dist.Bernoulli(there * p), obs=visits)


VOTES = np.array([[0, 0, 1], [1, 1, 1], [2, 2, 2], [0, 1, 0]])


@case(lambda: whole(VOTES), discrete=("c",))
@config_enumerate
def dawid_skene(votes: Tensor) -> None:
    """Annotators with a matrix of confusion each."""
    with pyro.plate("annotator", 3, dim=-1), pyro.plate("class", 3, dim=-2):
        beta = pyro.sample("beta", dist.Dirichlet(torch.ones(3)))
    pi = pyro.sample("pi", dist.Dirichlet(torch.ones(3)))
    beta = beta.transpose(0, 1)
    with pyro.plate("item", len(votes), dim=-2):
        c = pyro.sample("c", dist.Categorical(pi))
        with pyro.plate("position", 3, dim=-1):
            logits = Vindex(beta)[torch.arange(3), c, :]
            pyro.sample("y", dist.Categorical(logits), obs=votes)


@case(lambda: real(POINTS[:3]), discrete=("kind", "part"))
@config_enumerate
def tree_of_kinds(x: Tensor) -> None:
    """One discrete latent above another, the upper one outside every plate."""
    base = pyro.sample("base", dist.Normal(0.0, 2.0))
    gap = pyro.sample("gap", dist.LogNormal(0.0, 0.5))
    kind = pyro.sample("kind", dist.Categorical(one([0.2, 0.3, 0.5])))
    with pyro.plate("rows", len(x)):
        part = pyro.sample("part", dist.Bernoulli(Vindex(one([0.1, 0.5, 0.8]))[kind]))
        pyro.sample("x", dist.Normal(base + gap * part + 0.5 * kind, 1.0), obs=x)


def _missing_label() -> float:
    def log_density(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        logs = stats.norm.logpdf(a, 0, 2) + stats.norm.logpdf(b, 0, 2)
        for x, label in zip(POINTS, [0, 0, 1, None, None], strict=True):
            parts = stats.norm.logpdf(x, a), stats.norm.logpdf(x, b)
            both = np.logaddexp(*np.broadcast_arrays(*parts))
            logs = logs + np.log(0.5) + (both if label is None else parts[label])
        return logs

    return quadrature(log_density, np.linspace(-9, 9, 301), np.linspace(-9, 9, 301))


@built(discrete=("missing",), evidence=_missing_label)
def semi_supervised() -> tuple:
    """Labels of some rows only, the others summed out in a plate of their own."""

    def model(x: Tensor, label: Tensor) -> None:
        means = pyro.sample("means", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        half = torch.ones(2) / 2
        with pyro.plate("labelled", len(label)):
            k = pyro.sample("label", dist.Categorical(half), obs=label)
            pyro.sample("x", dist.Normal(means[k], 1.0), obs=x[: len(label)])
        with pyro.plate("unlabelled", len(x) - len(label)):
            k = pyro.sample("missing", dist.Categorical(half))
            pyro.sample("x_unlabelled", dist.Normal(means[k], 1.0), obs=x[len(label) :])

    return config_enumerate(model), (*real(POINTS), *whole([0, 0, 1])), {}


def _switch() -> float:
    """The exact sum over 2^8 paths of switches for each p, by the forward algorithm."""

    def log_density(stay: np.ndarray) -> np.ndarray:
        forward = [np.log(0.5) + stats.poisson.logpmf(DISASTERS[0], r) + 0 * stay for r in (1, 4)]
        for n in DISASTERS[1:]:
            moves = [[np.log(stay), np.log1p(-stay)], [np.log1p(-stay), np.log(stay)]]
            forward = [
                np.logaddexp(forward[0] + moves[0][j], forward[1] + moves[1][j])
                + stats.poisson.logpmf(n, r)
                for j, r in enumerate((1, 4))
            ]
        return np.logaddexp(*forward)

    return quadrature(log_density, np.linspace(1e-6, 1 - 1e-6, 2001))


@case(lambda: real(DISASTERS), evidence=_switch, vmap=False)
def discrete_hmm(count: Tensor) -> None:
    """dist.DiscreteHMM: its paths are summed inside the distribution."""
    stay = pyro.sample("stay", dist.Uniform(0.0, 1.0))
    change = torch.stack([torch.stack([stay, 1 - stay]), torch.stack([1 - stay, stay])])
    look = dist.Poisson(one([1.0, 4.0]))
    # Pyro's forward algorithm moves before it first looks: an even start stays even.
    hmm = dist.DiscreteHMM(torch.zeros(2) - np.log(2), change.log(), look, duration=len(count))
    pyro.sample("count", hmm, obs=count)


BAGS = np.array([[0, 1, 1], [2, 2, 1]])


@case(lambda: whole(BAGS), discrete=("topic",))
@config_enumerate
def topics(words: Tensor) -> None:
    """Latent Dirichlet allocation: words in documents, a topic for each."""
    with pyro.plate("topics", 2):
        topic_words = pyro.sample("topic_words", dist.Dirichlet(torch.ones(3) / 2))
    with pyro.plate("documents", 2, dim=-1):
        share = pyro.sample("share", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("words", 3, dim=-2):
            topic = pyro.sample("topic", dist.Categorical(share))
            pyro.sample("word", dist.Categorical(topic_words[topic]), obs=words.T)


def _successes() -> float:
    def log_density(p: np.ndarray) -> np.ndarray:
        k = np.arange(4)
        logs = stats.beta.logpdf(p, 2, 2)
        for x in POINTS[:3]:
            parts = stats.binom.logpmf(k, 3, p[..., None]) + stats.norm.logpdf(x, k, 1)
            logs = logs + logsumexp(parts, axis=-1)
        return logs

    return quadrature(log_density, np.linspace(1e-9, 1 - 1e-9, 1001))


@case(lambda: real(POINTS[:3]), discrete=("k",), evidence=_successes)
def latent_successes(x: Tensor) -> None:
    """A latent Binomial of three trials a row, which is enumerated too."""
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    with pyro.plate("rows", len(x)):
        k = pyro.sample("k", dist.Binomial(3, p))
        pyro.sample("x", dist.Normal(k, 1.0), obs=x)


@case(lambda: real(POINTS[:4]), discrete=("which",))
@config_enumerate
def one_hot(x: Tensor) -> None:
    """A discrete latent with an event axis."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    means = pyro.sample("means", dist.Normal(one([-2.0, 0.0, 2.0]), 1.0).to_event(1))
    with pyro.plate("rows", len(x)):
        which = pyro.sample("which", dist.OneHotCategorical(weights))
        pyro.sample("x", dist.Normal((which * means).sum(-1), 0.5), obs=x)


@case(lambda: real(POINTS[:4]), discrete=tuple(f"jump_{t}" for t in range(4)))
@config_enumerate
def switching_walk(x: Tensor) -> None:
    """A continuous and a discrete latent at each step of one loop."""
    share = pyro.sample("share", dist.Beta(1.0, 3.0))
    level = one(0.0)
    for t in pyro.markov(range(len(x))):
        jump = pyro.sample(f"jump_{t}", dist.Bernoulli(share))
        step = pyro.sample(f"step_{t}", dist.Normal(0.0, 1.0))
        level = level + step
        pyro.sample(f"x_{t}", dist.Normal(level, 0.3 + 2 * jump), obs=x[t])
