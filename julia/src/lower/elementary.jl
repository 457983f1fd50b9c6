# Exponentials and logarithms without calls and branches, so that loops over them are vectorised: Julia's own are called one
# number at a time, which takes about ten times as long. Errors are less than 1 unit in the last place for `vector_exp`, 2.5
# for `vector_expm1` and `vector_log1p`, 3 for `vector_tanh`. What is not a Float32 or a Float64 goes to Julia's.

"What is added to an exponent, and how many bits stand behind it."
bias_and_shift(::Type{Float32}) = (Int32(127), 23)
bias_and_shift(::Type{Float64}) = (Int64(1023), 52)

"log 2 in two parts, the first of which has zeros at its end: a product with an exponent is exact."
log2_parts(::Type{Float32}) = (0.693359375f0, Float32(-0.00021219444005469057))
log2_parts(::Type{Float64}) = (0.6931471803691238, 1.9082149292705877e-10)

"A number that leaves, added to an integer, that integer in its last bits."
shifter(::Type{Float32}) = 1.2582912f7
shifter(::Type{Float64}) = 6.755399441055744e15

"Taylor's coefficients of `exp` on ±½ log 2, and of `2 atanh(s) / s` in s², s² < 0.0295, as far as they matter."
const EXP_TERMS = ntuple(i -> 1 / factorial(i - 1), 14)
const LOG_TERMS = ntuple(i -> 2 / (2i - 1), 11)
const EXP_TERMS_SINGLE = Float32.(EXP_TERMS[1:8])
const LOG_TERMS_SINGLE = Float32.(LOG_TERMS[1:5])

exp_terms(::Type{Float32}) = EXP_TERMS_SINGLE
exp_terms(::Type{Float64}) = EXP_TERMS
log_terms(::Type{Float32}) = LOG_TERMS_SINGLE
log_terms(::Type{Float64}) = LOG_TERMS

"Where `exp` is 0, and where it is infinite."
exp_ends(::Type{Float32}) = (-104.0f0, 89.0f0)
exp_ends(::Type{Float64}) = (-746.0, 710.0)

vector_exp(x) = exp(x)
vector_expm1(x) = expm1(x)
vector_log1p(x) = x < -1 ? nan(x) : log1p(x)
vector_tanh(x) = tanh_fast(x)

"`r` and two powers of 2 with `exp(x) = exp(r)` times both, |r| ≤ ½ log 2; the powers' product may be too large or too small."
@inline function reduced(x::T) where {T}
    bias, shift = bias_and_shift(T)
    low, high = exp_ends(T)
    hi, lo = log2_parts(T)
    y = ifelse(x < low, low, ifelse(x > high, high, x))
    shifted = muladd(y, T(1.4426950408889634), shifter(T))
    k, whole = bits_of(shifted) - bits_of(shifter(T)), shifted - shifter(T)
    r = muladd(whole, -lo, muladd(whole, -hi, y))
    half = k >> 1
    return r, reinterpret(T, (half + bias) << shift), reinterpret(T, (k - half + bias) << shift)
end

@inline function vector_exp(x::T) where {T<:Union{Float32,Float64}}
    r, a, b = reduced(x)
    return evalpoly(r, exp_terms(T)) * a * b
end

@inline function vector_expm1(x::T) where {T<:Union{Float32,Float64}}
    r, a, b = reduced(x)
    p = r * evalpoly(r, Base.tail(exp_terms(T)))  # exp(r) - 1
    y = ifelse(x > T(40), (1 + p) * a * b, muladd(a * b, p, a * b - 1))
    return ifelse(abs(x) < eps(T), x, y)
end

"By `expm1`, as Float32 has a quotient of polynomials that is faster."
@inline function vector_tanh(x::Float64)
    m = vector_expm1(-2abs(x))
    return copysign(m / (2 + m), x)
end

bits_of(x::Float32) = reinterpret(Int32, x)
bits_of(x::Float64) = reinterpret(Int64, x)

"`log(1 + x) = k log 2 + 2 atanh(s)`, with `1 + x = 2^k (1 + f)`, 1 + f between √½ and √2, and `s = f / (2 + f)`."
@inline function vector_log1p(x::T) where {T<:Union{Float32,Float64}}
    _, shift = bias_and_shift(T)
    hi, lo = log2_parts(T)
    u = one(T) + x
    k = (bits_of(u) - bits_of(T(0.7071067811865476))) >> shift
    f = ifelse(k == 0, x, reinterpret(T, bits_of(u) - (k << shift)) - one(T))
    lost = ifelse(k == 0, zero(T), (x - (u - one(T))) / u)  # of the sum 1 + x
    whole = reinterpret(T, bits_of(shifter(T)) + k) - shifter(T)
    s = f / (2 + f)
    y = muladd(whole, hi, muladd(s, evalpoly(s * s, log_terms(T)), muladd(whole, lo, lost)))
    y = ifelse(isinf(x) | (abs(x) < eps(T)), x, y)  # for the least numbers, s is inexact
    return ifelse(x > -one(T), y, ifelse(x == -one(T), T(-Inf), nan(x)))
end

"The logistic function; for large |x| it goes to 0 as `exp` does."
@inline vector_sigmoid(x) = (e = vector_exp(-abs(x)); ifelse(x >= 0, one(x), e) / (1 + e))
