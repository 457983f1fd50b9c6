# Fields that Python evaluates, with C functions in the place of Python's: du = -2u, and its products.

using PyNODE: INTERRUPTED, Interrupted, Options, PYTHON, PythonFunction, discrete_pullback, drop_function, forget_callback,
    forward!, forward_entry, make_field, product_function, record_function, register_callback, replay_function, value_function

module Pretended

const CALLS = Int[]
const FAILS = Ref(0)  # the call that raises
const U, V, DU, DZ = (zeros(2) for _ in 1:4)

nothing_happens(_...) = Cint(0)
release(_) = nothing
fetch(_...) = nothing

function call(f::Ptr{Cvoid})
    push!(CALLS, Int(f))
    length(CALLS) == FAILS[] && return C_NULL
    DU .= -2 .* U
    DZ .= -2 .* V
    return Ptr{Cvoid}(1)
end

end

@testset "a field that Python evaluates" begin
    python = deepcopy((PYTHON.ensure, PYTHON.release, PYTHON.decrease, PYTHON.call, PYTHON.fetch))
    PYTHON.ensure = @cfunction(Pretended.nothing_happens, Cint, ())
    PYTHON.release = PYTHON.decrease = @cfunction(Pretended.release, Cvoid, (Ptr{Cvoid},))
    PYTHON.call = @cfunction(Pretended.call, Ptr{Cvoid}, (Ptr{Cvoid},))
    PYTHON.fetch = @cfunction(Pretended.fetch, Cvoid, (Ptr{Cvoid}, Ptr{Cvoid}, Ptr{Cvoid}))
    try
        call, time, dt = zeros(Int, 2), zeros(1), zeros(1)
        address(x) = Int(pointer(x))
        n = Int(typemax(PythonFunction))
        ints = [1, 100, n, (1:n)..., map(address, (call, time, Pretended.U, Pretended.V, Pretended.DU, Pretended.DZ))..., 0]
        append!(ints, [address(dt), 0, 1, 2])
        GC.@preserve call time dt ints begin
            kernel = register_callback("float64", address(ints), length(ints))
            field = make_field(PyNODE.KERNELS[kernel], 1, :joint)
            count(f) = sum(==(Int(f)), Pretended.CALLS; init = 0)
            gradients = map((2^30, 0)) do memory
                empty!(Pretended.CALLS)
                values = zeros(2, 2)
                options = Options(; solver = "Tsit5", rtol = 1e-9, atol = 1e-9, keep = :stages, memory)
                summary, solved = forward!(values, field, [1.0, -0.5], [0.0, 1.0], field.θ, options)
                @test summary.outcome === PyNODE.success
                @test values[:, 2] ≈ exp(-2) .* [1.0, -0.5] rtol = 1e-8
                kept = memory > 0
                @test (count(record_function) > 0) == kept
                @test (count(value_function) > 0) == !kept
                found = discrete_pullback(solved, [0.0 1.0; 0.0 3.0]; wants_t = false)
                @test (count(replay_function) > 0) == kept
                @test (count(product_function) > 0) == !kept
                dropped, stages = count(drop_function), length(solved.steps.stages)
                PyNODE.give_back!(solved)
                @test count(drop_function) - dropped == (kept ? stages : 0)
                found.u0
            end
            @test gradients[1] ≈ exp(-2) .* [1.0, 3.0] rtol = 1e-8
            @test gradients[1] ≈ gradients[2] rtol = 1e-14

            # What raises ends the solve at once.
            empty!(Pretended.CALLS)
            Pretended.FAILS[] = 5
            options = Options(; solver = "Tsit5")
            @test_throws Interrupted forward!(zeros(2, 2), field, [1.0, -0.5], [0.0, 1.0], field.θ, options)
            @test length(Pretended.CALLS) == 5
            INTERRUPTED[] = false
            forget_callback(kernel)
            @test PyNODE.KERNELS[kernel] === nothing
        end
    finally
        PYTHON.ensure, PYTHON.release, PYTHON.decrease, PYTHON.call, PYTHON.fetch = python
    end
end
