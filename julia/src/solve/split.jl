# Split fields: dz/dt = stiff(t, z) + nonstiff(t, z), of which additive Runge–Kutta methods take the first part implicitly
# and the second explicitly.

"""
The parts of a field, bound to what they read.

# Fields
- `stiff`: the implicit part, whose Jacobian is that of the nonlinear systems.
- `nonstiff`: the explicit part.
- `begun_again`: how many steps of the solve were begun again, see `post_step_reject!` below.
"""
mutable struct Split
    const stiff::TracedField
    const nonstiff::TracedField
    begun_again::Int
end

"The one that the next call of Python's takes, if that says so."
const SPLIT = Ref{Union{Nothing,Split}}(nothing)

"A part as a solver calls it: it has read what it reads, and looks at no `p`."
struct SplitPart{F<:TracedField} <: Function
    field::F
end

(x::SplitPart)(du, u, p, t) = (value!(du, x.field, u, t); nothing)

"The Jacobian of a part, likewise."
struct SplitJacobian{J<:Jacobian} <: Function
    of::J
end

(x::SplitJacobian)(J, u, p, t) = x.of(J, u, x.of.field.θ, t)

"The parts as SciML's `SplitFunction`."
function split_function(s::Split)
    stiff = ODEFunction{true,FullSpecialize}(SplitPart(s.stiff); jac = SplitJacobian(Jacobian(s.stiff)))
    return SplitFunction{true,FullSpecialize}(stiff, ODEFunction{true,FullSpecialize}(SplitPart(s.nonstiff)))
end

# After a failure of Newton's method KenCarp methods take the rate of the whole field at the start of the step for that of
# its stiff part, and go on as if the other had none, which no estimate of the error sees. They do not where no failure is
# remembered; nothing else asks for it in adaptive solves.
if isdefined(OrdinaryDiffEqCore, :post_step_reject!)
    function OrdinaryDiffEqCore.post_step_reject!(integrator::ODEIntegrator{<:Any,<:Any,<:Any,<:Any,<:Any,Split})
        integrator.p.begun_again += 1
        integrator.last_stepfail = false
        return nothing
    end
end

"Whether that has been seen to: other versions of OrdinaryDiffEqCore may ask nobody."
begins_again(s::Split, stats) = stats.nnonlinconvfail <= s.begun_again

"How often a field has been evaluated in solves: as a whole, or each of its parts."
evaluations(f::TracedField, ::Nothing) = f.counts[1]
evaluations(::TracedField, s::Split) = s.stiff.counts[1] + s.nonstiff.counts[1]

"A solution of the split equation as one of the sum, whose products the adjoints take."
function of_sum(solution, field::TracedField, θ, solver)
    split = solution.prob
    problem = ODEProblem{true}(ode_function(field, solver), split.u0, split.tspan, θ)
    (; alg, t, u, k, dense, interp, retcode, stats) = solution
    return build_solution(problem, alg, t, u; k, dense, interp, retcode, stats, calculate_error = false)
end
