from llmopt.grids import integer
from llmopt.grids.base import GridOptions
from llmopt.methods.quantize import quantease, rtn
from llmopt.methods.quantize.settings import QuantEaseSettings
from tests.methods.quantize.reference import make_problem, objective


def test_every_sweep_lowers_the_loss_of_round_to_nearest() -> None:
    (weight, statistics), options = make_problem(48, 128), GridOptions(grid="int3", bits=3)
    losses = []
    for method, refine in ((rtn, 0), (quantease, 1), (quantease, 2), (quantease, 10)):
        found = method.solve(weight, statistics, options, QuantEaseSettings(refine=refine))
        values = integer.decode(found.codes, found.params)
        losses.append(float(objective(weight, values, statistics.hessian).sum()))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.5 * losses[0]
