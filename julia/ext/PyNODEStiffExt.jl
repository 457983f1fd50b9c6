module PyNODEStiffExt

using ADTypes: AutoFiniteDiff
using LinearSolve: KrylovJL_GMRES
using OrdinaryDiffEqBDF: FBDF, QNDF
using OrdinaryDiffEqRosenbrock: Rodas5P, Rosenbrock23
using OrdinaryDiffEqSDIRK: KenCarp4, TRBDF2
using OrdinaryDiffEqTsit5: AutoTsit5
using PyNODE: SOLVERS

# The field brings its Jacobian and time gradient, and its kernels take plain numbers only: no dual numbers.
function __init__()
    for (name, solver) in (
        "Rosenbrock23" => Rosenbrock23,
        "Rodas5P" => Rodas5P,
        "TRBDF2" => TRBDF2,
        "KenCarp4" => KenCarp4,
        "FBDF" => FBDF,
        "QNDF" => QNDF,
    )
        SOLVERS[name] = () -> solver(; autodiff = AutoFiniteDiff())
    end
    for (name, solver) in ("KenCarp4Krylov" => KenCarp4, "FBDFKrylov" => FBDF)
        SOLVERS[name] = () -> solver(; autodiff = AutoFiniteDiff(), linsolve = KrylovJL_GMRES())
    end
    SOLVERS["AutoStiff"] = () -> AutoTsit5(Rodas5P(; autodiff = AutoFiniteDiff()))
    return
end

end
