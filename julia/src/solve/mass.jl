# Mass matrices: M dz/dt = f(t, z) with M constant, possibly singular, so that some equations are algebraic.

"""
A mass matrix of the numbers of one sample, in the order of its state tensors.

# Fields
- `matrix`: M, n × n.
- `left`, `right`: orthonormal columns that span the null spaces of Mᵀ and of M.
"""
struct Mass
    matrix::Matrix{Float64}
    left::Matrix{Float64}
    right::Matrix{Float64}
end

"The one that the next call of Python's takes, if that says so."
const MASS = Ref{Union{Nothing,Mass}}(nothing)

"""
    set_mass(n, matrix, left, right)

As Python passes it: the numbers of each matrix, which has n rows, column by column.
"""
function set_mass(n, matrix, left, right)
    columns(x) = reshape(Float64[Float64(y) for y in x], Int(n), :)
    MASS[] = Mass(columns(matrix), columns(left), columns(right))
    return
end

"The matrix of a whole state: that of a sample for each."
function of_state(f::TracedField{T}, matrix::AbstractMatrix) where {T}
    whole = zeros(T, length(f.u), length(f.u))
    foreach(entries -> whole[entries, entries] .= matrix, f.samples)
    return whole
end

"An in-place function whose type nobody sees, so that a solver is compiled once for the field and for its adjoint."
struct Hidden
    f::Any
end

(h::Hidden)(out, u, p, t) = (h.f(out, u, p, t); nothing)

"A function with a mass matrix, its Jacobian and its derivative in t, all in place."
mass_function(f, jac, tgrad, mass_matrix::Matrix) =
    ODEFunction{true,FullSpecialize}(Hidden(f); jac = Hidden(jac), tgrad = Hidden(tgrad), mass_matrix)

mass_function(f::TracedField, m::Mass) =
    mass_function(f, Jacobian(f), TimeGradient(f, fill!(similar(f.dz), 0)), of_state(f, m.matrix))
