# How an adaptive solver chooses its steps, where that is asked for.

"""
What of a solver's choice of steps is asked for, NaN or `nothing` where it is left to the solver: exponents of a PID
controller, bounds of the step, safety and bounds of the factor from one step to the next, norm, and tolerances of each
component. Python's `StepControl` says more.
"""
struct StepControl
    exponents::Union{Nothing,NTuple{3,Float64}}
    dtmin::Float64
    dtmax::Float64
    safety::Float64
    qmin::Float64
    qmax::Float64
    norm::Any
    rtol::Union{Nothing,Vector{Float64}}
    atol::Union{Nothing,Vector{Float64}}
end

"The one that the next call of Python's takes, if that says so."
const STEP_CONTROL = Ref{Union{Nothing,StepControl}}(nothing)

"The greatest error of any component."
max_norm(u, t) = maximum(abs, u)
max_norm(u::Number, t) = abs(u)

"""
The greatest root mean square of the errors of a sample.

`sizes`: of a sample in each tensor of the state, which are one after the other, each with `batch` columns.
"""
struct SampleMax <: Function
    sizes::Vector{Int}
    batch::Int
end

(::SampleMax)(u::Number, t) = abs(u)

function (n::SampleMax)(u, t)
    offset, total = 0, nothing
    for size in n.sizes
        block = reshape(view(u, (offset + 1):(offset + size * n.batch)), size, n.batch)
        squares = sum(abs2, block; dims = 1)
        total = total === nothing ? squares : total .+ squares
        offset += size * n.batch
    end
    return sqrt(maximum(total) / sum(n.sizes))
end

"""
    set_step_control(exponents, numbers, norm, sizes, batch, rtol, atol)

As Python passes it: exponents and tolerances empty where they are not asked for.
"""
function set_step_control(exponents, numbers, norm, sizes, batch, rtol, atol)
    numbers_of(x) = Float64[Float64(y) for y in x]
    given(x) = isempty(x) ? nothing : numbers_of(x)
    betas = given(exponents)
    name = string(norm)
    of = name == "max" ? max_norm : name == "sample_max" ? SampleMax(Int[Int(x) for x in sizes], Int(batch)) : nothing
    STEP_CONTROL[] =
        StepControl(betas === nothing ? nothing : Tuple(betas), numbers_of(numbers)..., of, given(rtol), given(atol))
    return
end

"""
A tolerance for each component. Where a solver asks for one number, as the linear solves of Rosenbrock methods do, it is
the smallest.
"""
struct Tolerances{T,V<:AbstractVector{T}} <: AbstractVector{T}
    each::V
end

Base.size(x::Tolerances) = size(x.each)
Base.getindex(x::Tolerances, i::Int) = x.each[i]
Base.IndexStyle(::Type{<:Tolerances}) = IndexLinear()
(::Type{T})(x::Tolerances) where {T<:AbstractFloat} = T(minimum(x.each))
Base.inv(x::Tolerances) = inv.(x.each)
Base.broadcasted(::typeof(real), x::Tolerances) = x  # as `init` takes it

"The keywords of `init` that differ from those of a solve without."
function keywords(T, alg, c::StepControl)
    found = Pair{Symbol,Any}[]
    isnan(c.dtmin) || push!(found, :dtmin => c.dtmin)
    isnan(c.dtmax) || push!(found, :dtmax => c.dtmax)
    c.norm === nothing || push!(found, :internalnorm => c.norm)
    c.rtol === nothing || push!(found, :reltol => Tolerances(T.(c.rtol)))
    c.atol === nothing || push!(found, :abstol => Tolerances(T.(c.atol)))
    c.exponents === nothing || push!(found, :controller => controller(T, alg, c, c.exponents))
    return (; found...)
end

"The factor from one step to the next of a PID controller, smoothed as SciML has it, with safety and within bounds."
struct Limiter{T} <: Function
    safety::T
    low::T
    high::T
end

(l::Limiter)(x) = clamp(l.safety * default_dt_factor_limiter(x), l.low, l.high)

or(x, default) = isnan(x) ? default : x

"""
The controller of three exponents. OrdinaryDiffEq's I and PI controllers heed the options of the integrator, see `adjust!`;
its PID controller has a limiter of its own. The exponents of its PI controller are not divided by the order.
"""
function controller(T, alg, c::StepControl, (a, b, d))
    k = min(alg_order(alg), alg_adaptive_order(alg)) + 1
    d == 0 && b == 0 && a == 1 && return IController()
    d == 0 && return PIController(T(a / k), T(-b / k))
    return PIDController(T(a), T(b), T(d); limiter = Limiter(T(or(c.safety, 1.0)), T(or(c.qmin, 0.0)), T(or(c.qmax, Inf))))
end

"Whether safety or the bounds of the factor are asked for."
bounds_factor(c::StepControl) = !all(isnan, (c.safety, c.qmin, c.qmax))

"Set what `init` takes from the controller alone."
function adjust!(integrator, c::StepControl)
    o = integrator.opts
    o.gamma, o.qmin, o.qmax = or(c.safety, o.gamma), or(c.qmin, o.qmin), or(c.qmax, o.qmax)
    return integrator
end

"An integrator whose steps are chosen so."
function controlled(make, T, alg, c::StepControl)
    integrator = make(keywords(T, alg, c))
    own = integrator.opts.controller
    if own isa PIDController && c.exponents === nothing && bounds_factor(c)
        integrator = make(merge(keywords(T, alg, c), (; controller = controller(T, alg, c, own.beta))))
    end
    return adjust!(integrator, c)
end
