# Compiles what a first gradient by a stiff solver needs, where both packages are there.
module PyNODEStiffSensitivityExt

using ADTypes: ADTypes
using LinearSolve: LinearSolve
using OrdinaryDiffEqBDF: OrdinaryDiffEqBDF
using OrdinaryDiffEqRosenbrock: OrdinaryDiffEqRosenbrock
using OrdinaryDiffEqSDIRK: OrdinaryDiffEqSDIRK
using PrecompileTools: @compile_workload
using PyNODE: forget_samples, sample_run
using SciMLSensitivity: SciMLSensitivity

@compile_workload begin
    for dtype in ("float32", "float64"), sensitivity in (:gauss, :interpolating)
        sample_run(dtype, "Rodas5P", sensitivity)
    end
    forget_samples()
end

end
