module PyNODEStiffExt

using ADTypes: AutoFiniteDiff
using LinearSolve: KrylovJL_GMRES
using OrdinaryDiffEqBDF: FBDF, QNDF
using OrdinaryDiffEqRosenbrock: Rodas5P, Rosenbrock23
using OrdinaryDiffEqSDIRK: KenCarp3, KenCarp4, KenCarp5, NLNewton, TRBDF2
using OrdinaryDiffEqTsit5: AutoTsit5
using PrecompileTools: @compile_workload
using PyNODE: SOLVERS, SPLIT_SOLVERS, forget_samples, sample_run

# The field brings its Jacobian and time gradient, and its kernels take plain numbers only: no dual numbers.
function __init__()
    for (name, solver) in (
        "Rosenbrock23" => Rosenbrock23,
        "Rodas5P" => Rodas5P,
        "TRBDF2" => TRBDF2,
        "KenCarp3" => KenCarp3,
        "KenCarp4" => KenCarp4,
        "KenCarp5" => KenCarp5,
        "FBDF" => FBDF,
        "QNDF" => QNDF,
    )
        SOLVERS[name] = () -> solver(; autodiff = AutoFiniteDiff())
    end
    # Errors of a split field's parts do not make up for one another. So each step has a Jacobian of its own, since Newton's
    # method, once exact, is taken to be so with an earlier one; and the estimate of a step's error is not smoothed by the
    # stiff part, which the other's error is not.
    nlsolve = NLNewton(; fast_convergence_cutoff = 0)
    for (name, solver) in ("KenCarp3" => KenCarp3, "KenCarp4" => KenCarp4, "KenCarp5" => KenCarp5)
        SPLIT_SOLVERS[name] = () -> solver(; autodiff = AutoFiniteDiff(), nlsolve, smooth_est = false)
    end
    for (name, solver) in ("KenCarp4Krylov" => KenCarp4, "FBDFKrylov" => FBDF)
        SOLVERS[name] = () -> solver(; autodiff = AutoFiniteDiff(), linsolve = KrylovJL_GMRES())
    end
    SOLVERS["AutoStiff"] = () -> AutoTsit5(Rodas5P(; autodiff = AutoFiniteDiff()))
    return
end

@compile_workload begin
    __init__()
    for dtype in ("float32", "float64"), solver in ("Rodas5P", "FBDF")
        sample_run(dtype, solver, nothing)
    end
    forget_samples()
end

end
