module PyNODEDiffEqFluxExt

using DiffEqFlux: DiffEqFlux, collocate_data
using PyNODE: PyNODE, FieldFailure

const KERNELS = Dict(
    name => getproperty(DiffEqFlux, Symbol(name, "Kernel")) for name in (
        "Epanechnikov", "Uniform", "Triangular", "Quartic", "Triweight", "Tricube", "Gaussian", "Cosine", "Logistic",
        "Sigmoid", "Silverman",
    )
)

function PyNODE.collocation!(du::AbstractMatrix, u::AbstractMatrix, data, ts, kernel, bandwidth)
    slope, value = try
        collocate_data(data, ts, KERNELS[kernel](), bandwidth)
    catch error
        throw(FieldFailure(PyNODE.told(error)))
    end
    copyto!(du, slope)
    copyto!(u, value)
    return
end

end
